"""Logits, shares and maps of models with rotary positions on an image, against the models' own logits and float64."""

import jax
import numpy as np
import pytest
from test_rotary_eva import save, small_timm

import qkjax
from qkjax.activations.project import Maps
from qkjax.analyses.image_rotary import rotary_heads
from qkjax.images.preprocess import normalise, picture
from qkjax.interaction.rotary.exact import logits_from_rotated
from qkjax.interaction.rotary.rotation import rotate
from qkjax.vit.rotary import token_angles
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.preprocessing import from_architecture

ROTARY = {
    "dinov3": Rotary(100.0, "centred", pairs="half"),
    "mlcd": Rotary(10000.0, pairs="half", class_angles=True),
}
TIMM = ("vit_pe_core_tiny_patch16_384", "eva02_tiny_patch14_224")
CAPTURED = ("norm", "residual", "query", "key", "rotated_query", "rotated_key", "attention_logits", "attention")


def moved_checkpoint(name: str) -> Checkpoint:
    """Random parameters that are all moved, with large query and key biases."""
    mlcd = name == "mlcd"
    config = qkjax.ViTConfig(48, 2, 4, 16, 80, (8, 8), posemb="none", class_token=True, registers=0 if mlcd else 4,
                             pool="tok", layer_scale=True, rotary=ROTARY[name])  # fmt: skip
    rng = np.random.default_rng(0)
    params = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), params)
    return Checkpoint(name, config, params, f"{name}.npz", from_architecture(config))


@pytest.fixture(scope="module", params=[*ROTARY, *TIMM])
def model(request, tmp_path_factory):
    """A checkpoint, a photograph, a size that is not square, and what the model computes."""
    if request.param in ROTARY:
        checkpoint = moved_checkpoint(request.param)
    else:
        libraries = pytest.importorskip("timm"), pytest.importorskip("torch")
        own, arguments = small_timm(*libraries, request.param)
        checkpoint = qkjax.load(save(tmp_path_factory.mktemp(request.param), own, request.param, arguments))
    photograph = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    size = tuple(n * p for n, p in zip((3, 5), checkpoint.config.patch_size, strict=True))
    images = normalise(picture(photograph, checkpoint.preprocess, size), checkpoint.preprocess)[None]
    return checkpoint, photograph, size, qkjax.forward(checkpoint, images, CAPTURED)[1]


@pytest.mark.parametrize("positions", ["mean", "none"])
def test_modes_give_back_the_logits(model, positions):
    """For all pairs of tokens: patches, and special tokens, of which MLCD rotates its class token."""
    checkpoint, _, _, captured = model
    modes = qkjax.decompose(checkpoint, positions=positions)
    maps = rotary_heads(checkpoint, modes).maps
    for layer, own in enumerate(captured["attention_logits"]):
        rotated = captured["rotated_query"][layer], captured["rotated_key"][layer]
        logits = logits_from_rotated(*rotated, *(x[layer] for x in maps[:4]))
        assert abs(logits - own).max() < 1e-4 * np.ptp(own)
        special = checkpoint.config.prefix_tokens
        pair = (..., slice(special), slice(special, None))
        assert not special or abs(logits - own)[pair].max() < 1e-4 * np.ptp(own[pair])


def content(checkpoint: Checkpoint, tokens: np.ndarray) -> list[np.ndarray]:
    """y Wq R(p) and y Wk R(p) of all tokens in float64: (layers, tokens, heads, head_dim)."""
    parts = qkjax.query_key(checkpoint)
    angles = token_angles(checkpoint.config, checkpoint.params, (3, 5))[:, None]
    return [
        rotate(np.einsum("lnd,ldhk->lnhk", tokens.astype(np.float64), kernel), angles, parts.rotation.pairs)
        for kernel in parts[:2]
    ]


def joined(maps: Maps) -> list[np.ndarray]:
    """Query and key maps over all tokens: (layers, tokens, heads, rank)."""
    both = (maps.query, maps.query_special), (maps.key, maps.key_special)
    return [np.concatenate([special[:, 0], x[:, 0].reshape(len(x), 15, *x.shape[-2:])], axis=1) for x, special in both]


@pytest.mark.parametrize("stream", ["norm", "residual"])
@pytest.mark.parametrize("model", list(ROTARY), indirect=True)
def test_products_of_the_maps_are_the_terms(model, stream):
    checkpoint, photograph, size, captured = model
    modes = qkjax.decompose(checkpoint)
    maps = qkjax.query_key_maps(checkpoint, photograph, stream=stream, resolution=size)
    of_heads = rotary_heads(checkpoint, modes).maps
    query, key = joined(maps)
    terms = np.einsum("lihn,lhn,ljhn->lhij", query, of_heads.s, key)
    rotated = content(checkpoint, np.asarray(captured[stream])[:, 0])
    outside = np.einsum("lihd,lhde,ljhe->lhij", rotated[0], of_heads.rest, rotated[1])
    expected = np.einsum("lihd,ljhd->lhij", *rotated)
    assert abs(terms + outside - expected).max() < 1e-4 * np.ptp(expected)
    if min(modes.frame.positions.coherence) > 0:  # DINOv3's fastest planes are purely positional: no mode includes them
        assert abs(outside).max() < 1e-4 * np.ptp(expected)


def test_maps_without_rotation_are_projections(model):
    checkpoint, photograph, size, captured = model
    modes = qkjax.decompose(checkpoint)
    maps = qkjax.query_key_maps(checkpoint, photograph, modes, resolution=size, rotated=False)
    for ours, directions in zip(joined(maps), (modes.u, modes.v), strict=True):
        expected = np.einsum("lnd,lhdr->lnhr", np.asarray(captured["norm"])[:, 0], np.asarray(directions, np.float64))
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.ptp(expected))


def test_shares_of_all_terms_add_up_to_1(model):
    """And the shares of the strongest modes by the definition, in float64."""
    checkpoint, photograph, size, captured = model
    dataset = qkjax.attribute_logits(checkpoint, photograph, resolution=size)
    others = [f"{name}_{{}}_share" for name in ("key_bias", "query_bias", "offset_bias", "rest")]
    of_heads = rotary_heads(checkpoint, qkjax.decompose(checkpoint)).maps
    query, key = (np.einsum("lnhd,lhdr->lnhr", x, np.asarray(m, np.float64)) for x, m in
                  zip(content(checkpoint, np.asarray(captured["norm"])[:, 0]), of_heads[:2], strict=True))  # fmt: skip
    for kind in ("variance", "attention"):
        total = dataset[f"{kind}_share"].sum("mode") + sum(dataset[name.format(kind)] for name in others)
        np.testing.assert_allclose(total, 1, atol=1e-4)
        logits, weights = (np.asarray(captured[x][:, 0], np.float64) for x in ("attention_logits", "attention"))
        weights = np.full_like(weights, 1 / weights.shape[-1]) if kind == "variance" else weights
        centred = logits - (weights * logits).sum(-1, keepdims=True)
        terms = np.einsum("lihn,lhn,ljhn->nlhij", query, of_heads.s, key)
        terms /= np.sqrt(checkpoint.config.head_dim)  # there may be fewer modes: planes without a mean have none
        share = (weights * centred * terms).sum((-2, -1)) / (weights * centred**2).sum((-2, -1))
        np.testing.assert_allclose(dataset[f"{kind}_share"], np.moveaxis(share, 0, -1), atol=1e-4)
    assert dataset.attrs["modes"] in dataset.attrs["summary"]


def test_modes_of_one_offset_have_no_maps_at_places(model):
    checkpoint, photograph, size, _ = model
    modes = qkjax.decompose(checkpoint, offset=(1, 0))
    with pytest.raises(qkjax.QkjaxError, match="frame offset"):
        qkjax.query_key_maps(checkpoint, photograph, modes, resolution=size)
