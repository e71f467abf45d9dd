"""Passes over images with a model that has rotary positions, against loops in float64 over modes of a dense Mbar."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from commands import command

import qkjax
from qkjax.analyses.decomposition import modes_per_head
from qkjax.analyses.edit import edit_with_notes
from qkjax.analyses.top_images.sheets import sheet_rows
from qkjax.images.default_set import photographs
from qkjax.images.generated import patterns
from qkjax.images.preprocess import Preprocess, normalise, picture
from qkjax.images.scenes import crop_to_model
from qkjax.images.segmented import crop_objects, mosaics
from qkjax.interaction.rotary.rotation import rotate
from qkjax.vit.rotary import patch_rotation
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.checkpoint import Checkpoint

PRESET = Preprocess("squash", "pil-bilinear", 32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = qkjax.ViTConfig(24, 2, 2, 8, 48, (8, 8), posemb="none", class_token=True, registers=2, pool="tok",
                             rotary=Rotary(100.0, "centred", pairs="half"))  # fmt: skip
    rng = np.random.default_rng(0)
    params = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), params)
    return Checkpoint("rotary", config, params, "rotary.npz", PRESET)


def dense_modes(checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Modes of the mean of M over all pairs of 4 x 4 places, by a dense SVD, with the signs of `decompose`.

    Only modes that have a strength: two of the four planes are purely positional.
    """
    parts, rotation = qkjax.query_key(checkpoint.params), patch_rotation(checkpoint.config, (4, 4))
    kernels = (np.moveaxis(x.astype(np.float64), 2, 1)[:, :, None] for x in parts[:2])
    query, key = (rotate(x, rotation.angles[:, None], rotation.pairs).mean(2) for x in kernels)
    u, s, vt = np.linalg.svd(query @ key.swapaxes(-1, -2))
    count = (s > 1e-6 * s.max()).sum(-1).max()
    u, v = u[..., :count], vt.swapaxes(-1, -2)[..., :count]
    own = np.asarray(qkjax.decompose(checkpoint).u)[..., :count]
    sign = np.sign((u * own).sum(-2, keepdims=True))
    return u * sign, s[..., :count], v * sign


def content_maps(checkpoint: Checkpoint, pixels: np.ndarray, modes) -> list[np.ndarray]:
    _, out = qkjax.forward(checkpoint, normalise(pixels, PRESET)[None], capture=("norm",))
    y = np.asarray(out["norm"], np.float64)[:, 0, checkpoint.config.prefix_tokens :]
    return [np.einsum("lpd,lhdr->lphr", y, w) for w in (modes[0], modes[2])]


def test_top_images(checkpoint):
    images, _ = photographs().spread(5)
    modes = dense_modes(checkpoint)
    data = qkjax.top_images(checkpoint, images, top=2, maps=1)
    count = modes[1].shape[-1]
    scores, maps = [], []
    for index in range(5):
        query, key = content_maps(checkpoint, picture(images.read(index), PRESET), modes)
        scores.append([[f(query, axis=1) * f(key, axis=1)] for f in (np.max, np.min)])
        maps.append((query, key))
    scores = np.moveaxis(np.array(scores)[:, :, 0], 1, -1)  # (image, layer, head, mode, sign)
    order = np.argsort(-scores, axis=0)[:2]
    np.testing.assert_array_equal(data.image_index[0, :, :, :count], np.moveaxis(order, 0, -1))
    best = np.moveaxis(np.take_along_axis(scores, order, 0), 0, -1)
    np.testing.assert_allclose(data.value[0, :, :, :count], best, rtol=1e-4, atol=1e-4)
    assert data.attrs["modes"] == "mean over places of a 4 x 4 grid"
    np.testing.assert_allclose(data.singular_value[..., :count], modes[1], rtol=1e-5)
    tiles = [row.tiles[0] for row in sheet_rows(checkpoint, images, data, ["L1 H0 M0+", "L1 H0 M1+"])]
    for mode, tile in enumerate(tiles):  # the maps of the second mode take a second pass
        for ours, projections in zip(tile[1:3], maps[order[0, 1, 0, mode, 0]], strict=True):
            np.testing.assert_allclose(ours.reshape(-1), projections[1, :, 0, mode], atol=1e-4)


def test_same_object(checkpoint):
    images, modes = mosaics(3, 0), dense_modes(checkpoint)
    data = qkjax.same_object(checkpoint, images, top=2)
    scores, same = [], []
    for index in range(3):
        pixels, masks = crop_objects(images.read(index), "", PRESET, None, (8, 8))
        masks = masks[masks.sum(1) > 0]
        signed = [np.stack([m, -m], axis=-1) for m in content_maps(checkpoint, pixels, modes)]
        scores.append(signed[0].max(1) * signed[1].max(1))
        best = [np.einsum("op,lphrs->olhrs", masks / masks.sum(1, keepdims=True), m).argmax(0) for m in signed]
        same.append(best[0] == best[1])
    order = np.argsort(-np.array(scores), axis=0)[:2]
    count = modes[1].shape[-1]
    np.testing.assert_array_equal(data.image_index[:, :, :count], np.moveaxis(order, 0, -1))
    expected = np.moveaxis(np.take_along_axis(np.array(same), order, 0), 0, -1)
    np.testing.assert_array_equal(data.same[:, :, :count], expected)


def test_attention_preference(checkpoint):
    """Attention from rotated queries and keys in float64, and the weighted cosine of Mbar."""
    scenes, config = patterns(2, 0), checkpoint.config
    data = qkjax.attention_preference(checkpoint, scenes)
    parts, rotation = qkjax.query_key(checkpoint.params), patch_rotation(config, (4, 4))
    angles = np.pad(rotation.angles, ((config.prefix_tokens, 0), (0, 0)))[:, None]
    for index in range(2):
        pixels, regions = crop_to_model(scenes.read(index), "", PRESET, None, (8, 8))
        _, out = qkjax.forward(checkpoint, normalise(pixels, PRESET)[None], capture=("norm",))
        y = np.asarray(out["norm"], np.float64)[:, 0]
        query, key = (
            rotate(np.einsum("lnd,ldhk->lnhk", y, w) + b[:, None], angles, rotation.pairs)
            for w, b in ((parts.query_kernel, parts.query_bias), (parts.key_kernel, parts.key_bias))
        )
        weights = np.exp(np.einsum("lihd,ljhd->lhij", query, key) / np.sqrt(8))[..., config.prefix_tokens :]
        flat = np.asarray(regions).reshape(3, -1)
        for number, place in enumerate(flat[:2].argmax(-1)):
            row = weights[:, :, config.prefix_tokens + place]
            mass = row @ flat.T / row.sum(-1, keepdims=True)
            np.testing.assert_allclose(data.mass[index, :, :, number], mass, atol=1e-5)
    u, s, v = dense_modes(checkpoint)
    cosine = (s * (u * v).sum(-2)).sum(-1) / s.sum(-1)
    np.testing.assert_allclose(data.weighted_cosine, cosine, atol=1e-5)


def test_ablation_is_a_pass_of_the_edited_checkpoint(checkpoint):
    images, _ = photographs().spread(2)
    plan = [{"edit": "drop", "select": "cosine>0 layers=1"}]
    with pytest.raises(qkjax.QkjaxError, match="match='logits' received a model with rotary positions"):
        qkjax.ablate(checkpoint, plan, images)
    data = qkjax.ablate(checkpoint, plan, images, queries=16, match="strength")
    assert "logits_share" not in data
    np.testing.assert_array_equal(data.share, data.strength_share)
    edited, notes = edit_with_notes(checkpoint, "drop", "cosine>0 layers=1")
    for index in range(2):
        pixels = normalise(picture(images.read(index), PRESET), PRESET)[None]
        before, after = (
            np.asarray(qkjax.forward(c, pixels, capture=("attention",))[1]["attention"], np.float64)[:, 0, :, 3:]
            for c in (checkpoint, edited)
        )
        middle = (before + after) / 2
        divergence = sum((p * np.log2(p / middle)).sum(-1) for p in (before, after)) / 2
        np.testing.assert_allclose(data.attention_js[1, index], divergence.mean(-1), atol=1e-5)
        assert (data.attention_js[1, index, 1] > 1e-3).all() and not data.attention_js[1, index, 0].any()
    assert not data.out_of_reach[0].any() and not data.out_of_reach[1, 0].any()
    assert f"{float(data.out_of_reach[1, 1].mean()):.1%}" in notes[0]
    assert f"{float(data.place_change[1, 1].mean()):.1%}" in notes[1]
    with pytest.raises(qkjax.QkjaxError, match="exact=True"):
        qkjax.ablate(checkpoint, plan, images, exact=True, match="strength")


def test_the_number_of_modes_is_known_before_the_scan(checkpoint, tmp_path, monkeypatch, capsys):
    """Planes without a mean have no modes; a mode that does not exist is one line, before any image is read."""
    centred = Rotary(100.0, "centred", pairs="half")
    for config in (checkpoint.config, replace(checkpoint.config, rotary=centred, grid=(4, 4))):
        other = replace(checkpoint, config=config)
        assert modes_per_head(other) == qkjax.decompose(other).s.shape[-1]
    qkjax.save(other, tmp_path / "m.npz")
    last = modes_per_head(other)
    assert last < other.config.head_dim
    done = command(monkeypatch, capsys, "top-images", tmp_path / "m.npz", "--select", f"L0 H0 M{last}")
    assert done.code == 2
    assert f"expected a layer from 0 to {other.config.depth - 1}" in done.err
