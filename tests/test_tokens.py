"""Token statistics of models: equal to loops over images and pairs in float64, resumable, and told with intervals."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from qkjax.analyses.tokens import compute
from qkjax.analyses.tokens.describe import overlay
from qkjax.analyses.tokens.photographs import photograph_indices, photograph_resamples
from qkjax.analyses.tokens.shares import PAIRS, head_shares, overall, tokens_table
from qkjax.images.default_set import photographs
from qkjax.images.preprocess import Preprocess, normalise, picture
from qkjax.passes import engine
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint

SIDE, PATCHES, COUNT = 32, 16, 5
PRESET = Preprocess("squash", "pil-bilinear", SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZES = {"width": 24, "depth": 2, "heads": 2, "head_dim": 8, "mlp_dim": 48, "patch_size": (8, 8)}
CONFIGS = {
    "learned": qkjax.ViTConfig(**SIZES, grid=(4, 4), class_token=True, registers=2, pool="tok"),
    "without special tokens": qkjax.ViTConfig(**SIZES, grid=(4, 4), pool="gap"),
    "rotary": qkjax.ViTConfig(
        **SIZES, posemb="none", class_token=True, registers=2, pool="tok", rotary=Rotary(100.0, "centred", pairs="half")
    ),
}
OPTIONS = qkjax.PassOptions(batch=2)


def checkpoint_of(name: str) -> Checkpoint:
    config, rng = CONFIGS[name], np.random.default_rng(0)
    params = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), params)
    return Checkpoint(name, config, params, f"{name}.npz", PRESET)


@pytest.fixture(scope="module")
def images():
    return photographs().spread(COUNT)[0]


@pytest.fixture(scope="module")
def results(images) -> dict[str, tuple[Checkpoint, xr.Dataset]]:
    checkpoints = {name: checkpoint_of(name) for name in CONFIGS}
    return {name: (c, qkjax.token_statistics(c, images, options=OPTIONS)) for name, c in checkpoints.items()}


@pytest.fixture(params=CONFIGS)
def measured(request, results):
    return results[request.param]


def captured(checkpoint: Checkpoint, images, *names: str) -> list[np.ndarray]:
    """Intermediates (layers, images, ...) of every image by itself, in float64."""
    outs = []
    for index in range(COUNT):
        pixels = normalise(picture(images.read(index), PRESET), PRESET)[None]
        outs.append(qkjax.forward(checkpoint, pixels, capture=names)[1])
    return [np.concatenate([np.asarray(out[name], np.float64) for out in outs], axis=1) for name in names]


@pytest.mark.gpu
def test_parts_of_logits_are_those_of_all_pairs(measured, images):
    """To 1e-5 of the variance of the model's own logits, which the parts add up to."""
    checkpoint, result = measured
    special = checkpoint.config.prefix_tokens
    query, key, logits = captured(checkpoint, images, "rotated_query", "rotated_key", "attention_logits")
    firsts = {"patches": special} | ({"all": 0} if special else {})
    assert result.tokens.values.tolist() == list(firsts)
    for kind, first in firsts.items():
        ours = result.logit_parts.sel(tokens=kind).values
        q, k, own = query[:, :, first:], key[:, :, first:], logits[:, :, :, first:, first:]
        centred = own - own.mean(-1, keepdims=True)
        variance = (centred**2).mean((-1, -2))
        np.testing.assert_allclose(ours.sum((-1, -2)), np.moveaxis(variance, 0, 1), rtol=1e-4)
        places, means = (q.mean(1, keepdims=True), k.mean(1, keepdims=True)), []
        for whole, place in zip((q, k), places, strict=True):
            mean = place.mean(2, keepdims=True)
            means.append([np.broadcast_to(x, whole.shape) for x in (mean, place - mean, whole - place)])
        for a in range(3):
            for b in range(2):
                term = np.einsum("lbihd,lbjhd->lbhij", means[0][a], means[1][1 + b]) / np.sqrt(8)
                term = term - term.mean(-1, keepdims=True)
                wanted = np.moveaxis((term * centred).mean((-1, -2)), 0, 1)
                np.testing.assert_allclose(ours[..., a, b], wanted, atol=1e-5 * variance.max())


@pytest.mark.gpu
def test_map_correlations_are_those_of_maps_of_all_patches(measured, images):
    """To 1e-4, since tokens are float32: of whole tokens, of their content, and of their position factor."""
    checkpoint, result = measured
    modes = qkjax.decompose(checkpoint)
    (y,) = captured(checkpoint, images, "norm")
    y = y[:, :, checkpoint.config.prefix_tokens :]
    place = y.mean(1, keepdims=True)
    mean = place.mean(2, keepdims=True)
    u, s, v = (np.asarray(x, np.float64) for x in modes)
    for part, tokens in {"whole": y - mean, "content": y - place, "position": place - mean}.items():
        alpha, beta = (np.einsum("lbnd,lhdr->lhrbn", tokens, w).reshape(*s.shape, -1) for w in (u, v))
        sizes = s * alpha.std(-1) * beta.std(-1)
        found = result.sel(part=part)
        np.testing.assert_allclose(found.map_strength, sizes, atol=1e-4 * sizes.max())
        corr = (alpha * beta).mean(-1) / (alpha.std(-1) * beta.std(-1))
        np.testing.assert_allclose(found.map_correlation, corr, atol=1e-4)
        np.testing.assert_allclose(found.head_map_correlation, (sizes * corr).sum(-1) / sizes.sum(-1), atol=1e-4)
    offset = np.einsum("lbnd,lhdr->lhrbn", mean, u)[..., 0, 0] ** 2
    maps = [np.einsum("lbnd,lhdr->lhrbn", x, u).var((-1, -2)) for x in (place, y - place)]
    shares = np.stack([offset, *maps], -1) / (offset + sum(maps))[..., None]
    np.testing.assert_allclose(result.query_share, shares, atol=1e-4)
    position, total = (((x - mean) ** 2).sum((2, 3)).mean(1) for x in (place, y))
    np.testing.assert_allclose(result.position_share, position / total, rtol=1e-4)
    metrics = qkjax.measure(modes), qkjax.measure(qkjax.decompose(checkpoint, fold_scale=True))
    for name, own in zip(("weighted_cosine", "folded_cosine"), metrics, strict=True):
        np.testing.assert_allclose(result[name], own.weighted_cosine, atol=1e-6)


def test_position_is_where_it_is_put(images):
    """A position embedding far larger than the patches' contents makes the logits of the first layer positional."""
    checkpoint = checkpoint_of("without special tokens")
    table = 100 * np.random.default_rng(0).standard_normal((1, PATCHES, 24)).astype(np.float32)
    large = replace(checkpoint, params=checkpoint.params | {"pos_embedding": table})
    result = qkjax.token_statistics(large, images, options=OPTIONS)
    shares = dict(zip(PAIRS, head_shares(result)[0].mean(0), strict=True))
    assert shares["position_position"] + shares["mean_position"] > 0.95
    assert result.position_share[0] > 0.95
    none = replace(checkpoint, params=checkpoint.params | {"pos_embedding": 0 * table})
    result = qkjax.token_statistics(none, images, options=OPTIONS)
    assert result.position_share_halves[0] < result.position_share[0] < 0.5


@pytest.mark.parametrize("calls", [2, 5])
def test_an_interrupted_pass_resumes_to_the_same_bits(calls, results, images, tmp_path, monkeypatch):
    """Three batches in each pass; the interruption is in the first or in the second pass."""
    checkpoint, whole = results["learned"]
    partial, done = tmp_path / "tokens.partial.npz", []
    steps = {name: getattr(compute, name) for name in ("_moments_step", "_parts_step")}

    def counted(step, stop):
        def run(*arguments):
            done.append(1)
            if len(done) == stop:
                raise SystemExit
            return step(*arguments)

        return run

    monkeypatch.setattr(engine, "SAVE_SECONDS", -1.0)
    for name, step in steps.items():
        monkeypatch.setattr(compute, name, counted(step, calls))
    with pytest.raises(SystemExit):
        qkjax.token_statistics(checkpoint, images, options=OPTIONS, partial=partial)
    for name, step in steps.items():
        monkeypatch.setattr(compute, name, counted(step, None))
    again = qkjax.token_statistics(checkpoint, images, options=OPTIONS, partial=partial)
    assert len(done) == 6 + 1, "no batch is computed twice, except the one that was interrupted"
    xr.testing.assert_identical(again, whole)
    assert [path.name for path in tmp_path.iterdir()] == [partial.name], "the caller removes this one"
    fresh = qkjax.token_statistics(checkpoint, images, options=OPTIONS, partial=partial, fresh=True)
    assert len(done) == 6 + 1 + 6
    xr.testing.assert_identical(fresh, whole)


def test_batches_change_only_the_last_bits(results, images):
    checkpoint, whole = results["learned"]
    other = qkjax.token_statistics(checkpoint, images, options=qkjax.PassOptions(batch=5))
    assert other.image.values.tolist() == whole.image.values.tolist()
    np.testing.assert_allclose(other.logit_parts, whole.logit_parts, atol=1e-5 * float(whole.logit_parts.max()))
    np.testing.assert_allclose(other.map_correlation, whole.map_correlation, atol=1e-5)


def test_unreadable_images_are_left_out(results, images, tmp_path):
    for index in range(COUNT):
        Image.fromarray(np.asarray(images.read(index))).save(tmp_path / f"{index}.png")
    (tmp_path / "2 broken.png").write_bytes(b"no image")
    result = qkjax.token_statistics(results["learned"][0], qkjax.images.open_images(tmp_path), options=OPTIONS)
    assert result.left_out.values.tolist() == ["2 broken.png"]
    assert result.photograph.values.tolist() == list(range(COUNT))
    wanted = results["learned"][1]
    np.testing.assert_allclose(result.logit_parts, wanted.logit_parts, atol=1e-5 * float(wanted.logit_parts.max()))


def test_refusals(results, images):
    checkpoint, _ = results["learned"]
    shared = qkjax.PassOptions(shard=(0, 2))
    with pytest.raises(qkjax.QkjaxError, match="the second pass over the images needs the result of the first pass"):
        qkjax.token_statistics(checkpoint, images, options=shared)
    relative = replace(checkpoint, config=replace(checkpoint.config, relative_positions=True))
    with pytest.raises(qkjax.QkjaxError, match="learned has relative position biases"):
        qkjax.token_statistics(relative, images)


def test_crops_belong_to_their_photograph():
    names = ["a", "a 1/2 row 0 column 0", "b 1/3 row 1 column 2", "b", "c 1/2"]
    assert photograph_indices(names).tolist() == [0, 0, 1, 1, 2]
    index = photograph_indices(photographs().names)
    assert (np.diff(index) >= 0).all(), "crops follow their photograph"
    assert index.max() + 1 == 15
    weights = photograph_resamples(np.array([3, 3, 7]))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    assert set(np.round(2 * weights[:, 2])) == {0, 1, 2}
    assert np.isnan(photograph_resamples(np.array([4, 4]))).all()


def test_intervals_resample_photographs(results):
    """Twenty crops of two photographs are two photographs: three shares are possible, and the interval has them all."""
    one = results["learned"][1].isel(image=[0] * 20)
    parts = one.logit_parts.values.copy()
    parts[:] = 0
    parts[..., 2, 1], parts[10:, ..., 0, 0] = 1, 1
    dataset = one.assign(logit_parts=(one.logit_parts.dims, parts))
    dataset = dataset.assign_coords(photograph=("image", np.repeat([0, 1], 10)))
    share, low, high = overall(dataset)["content_content"]
    assert (share, low, high) == pytest.approx((2 / 3, 1 / 2, 1))
    alone = dataset.assign_coords(photograph=("image", np.zeros(20, int)))
    assert np.isnan(overall(alone)["content_content"][1:]).all()


def test_tables_and_figures(measured):
    _, result = measured
    description = qkjax.describe(result)
    rows = tokens_table(result)
    assert [row["layer"] for row in rows] == [0, 1]
    for table in (rows, description.tables["heads"]):
        for row in table:
            assert sum(row[name] for name in PAIRS) == pytest.approx(1)
            assert row["content_content_low"] <= row["content_content"] <= row["content_content_high"]
            assert ("all_content_content" in row) == ("all" in result.tokens.values)
    assert rows[1]["map_correlation"] == pytest.approx(float(result.head_map_correlation.sel(part="whole")[1].mean()))
    assert len(description.tables["modes"]) == result.cosine.size
    assert max(map(len, description.text.splitlines())) <= 80
    heads = {(row["layer"], row["head"]): row for row in description.tables["heads"]}
    mean = np.mean([heads[0, head]["content_content"] for head in range(2)])
    assert rows[0]["content_content"] == pytest.approx(mean)
    for draw in description.figures.values():
        figure = draw()
        assert all(axes.get_xlabel() for axes in figure.axes[:2])
    labels = [text.get_text() for text in overlay({"one": rows, "two": rows}).legends[0].get_texts()]
    assert labels == ["one", "two"]


def test_command(tmp_path, monkeypatch, capsys, images):
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoint_of("learned")
    write_checkpoint(tmp_path / "small.npz", checkpoint.config, checkpoint.params, PRESET)
    for index in range(3):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(np.asarray(images.read(index))).save(tmp_path / "pictures" / f"{index}.png")
    words = ("tokens", "small.npz", "--images", "pictures", "--batch", 2)
    done = command(monkeypatch, capsys, *words)
    assert done.code == 0, done.err
    assert "3 images of pictures, which show 3 photographs" in done.out
    folder = tmp_path / "results" / "small" / "tokens"
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    drawn = {f"{name}.{end}" for name in ("map_correlation", "position_and_content") for end in ("png", "pdf")}
    assert names == {"tokens.nc", "tokens.csv", "heads.csv", "modes.csv", *drawn}
    before = (folder / "tokens.nc").stat().st_mtime_ns
    again = command(monkeypatch, capsys, *words)
    assert again.out == done.out
    assert (folder / "tokens.nc").stat().st_mtime_ns == before
