"""Attention sinks against plain float64 loops and against an edited model; bimodality on simulated distributions."""

import jax
import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from qkjax.analyses.sinks.describe import describe
from qkjax.analyses.sinks.tables import by_photograph, head_rows, norm_valley, stage_rows
from qkjax.images.default_set import photographs
from qkjax.images.sources import open_images
from qkjax.results.bimodality import bimodality
from qkjax.results.intervals import resamples
from qkjax.vit.model import forward
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint
from qkjax.weights.preprocessing import from_architecture

KINDS = {
    "class and registers": {"class_token": True, "registers": 2, "pool": "tok", "layer_scale": True},
    "patches only": {},
    "rotary": {"class_token": True, "posemb": "none", "grid": None, "rotary": qkjax.Rotary(100.0)},
}
OPTIONS = qkjax.PassOptions(batch=2)


def checkpoint_of(kind: str) -> Checkpoint:
    """Random parameters that are all moved away from their initial values, so that the key bias matters."""
    config = qkjax.ViTConfig(24, 2, 2, 8, 40, (8, 8), **{"grid": (4, 4), **KINDS[kind]})
    params = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.4 * rng.standard_normal(x.shape), np.float32), params)
    return Checkpoint("random", config, params, "random.npz", from_architecture(config))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_is_a_plain_loop(kind, pictures):
    """Every image, layer and head in float64, to 1e-5: the forward pass is float32."""
    checkpoint, images = checkpoint_of(kind), open_images(pictures)
    result = qkjax.attention_sinks(checkpoint, images, options=OPTIONS)
    special, bias = checkpoint.config.prefix_tokens, qkjax.query_key(checkpoint.params).query_bias.astype(np.float64)
    names = {"class and registers": ["class token", "register 0", "register 1"], "patches only": []}
    assert list(result.key.values) == [*names.get(kind, ["class token"]), "patches", "top patch"]
    for i in range(3):
        pixels = qkjax.preprocess(checkpoint, images.read(i))[None]
        captures = ("query", "key", "value", "attention", "residual")
        model = qkjax.ViT(checkpoint.config)
        seen = {n: np.asarray(x, np.float64) for n, x in forward(model, checkpoint.params, pixels, captures)[1].items()}
        _, out = model.apply({"params": checkpoint.params}, pixels)
        own = result.isel(image=i)
        for layer, head in np.ndindex(2, 2):
            here = own.isel(layer=layer, head=head)
            attention = seen["attention"][layer, 0, head]
            shares = attention[special:].mean(0)
            top = special + shares[special:].argmax()
            assert here.top_patch == top - special

            def by_key(values, top=top):
                return [*values[:special], values[special:].mean(), values[top]]

            np.testing.assert_allclose(here.share, by_key(shares), atol=1e-5)
            entropy = -(attention * np.log2(np.maximum(attention, 1e-300))).sum(-1)[special:].mean()
            np.testing.assert_allclose(here.entropy, entropy, atol=1e-4)
            value = np.sqrt((seen["value"][layer, 0, :, head] ** 2).sum(-1))
            np.testing.assert_allclose(here.value_norm, by_key(value), atol=1e-4)
            if kind == "rotary":
                assert "share_without_bias" not in result and "top_share_without_bias" not in result
                continue
            query, key = (seen[name][layer, 0, :, head] for name in ("query", "key"))
            without = softmax((query - bias[layer, head]) @ key.T / np.sqrt(8))[special:].mean(0)
            np.testing.assert_allclose(here.share_without_bias, by_key(without), atol=1e-5)
            np.testing.assert_allclose(here.top_share_without_bias, without[special:].max(), atol=1e-5)
            assert np.abs(without - shares).max() > 1e-3
        tokens = np.stack([*seen["residual"][:, 0], np.asarray(out["encoder"]["pre_ln"], np.float64)[0]])
        norms = np.sqrt((tokens**2).sum(-1))
        np.testing.assert_allclose(own.special_norm, norms[:, :special], rtol=1e-5)
        np.testing.assert_allclose(own.patch_norm, norms[:, special:], rtol=1e-5)


def test_without_the_key_bias_is_the_edited_model(pictures):
    """In the first layer, whose input does not change, the attention is that of the checkpoint edited by `unbias`."""
    checkpoint, images = checkpoint_of("class and registers"), open_images(pictures)
    result = qkjax.attention_sinks(checkpoint, images, options=OPTIONS).isel(layer=0)
    edited = qkjax.attention_sinks(qkjax.edit(checkpoint, "unbias"), images, options=OPTIONS).isel(layer=0)
    np.testing.assert_allclose(result.share_without_bias[..., :-1], edited.share[..., :-1], atol=1e-5)
    np.testing.assert_allclose(result.top_share_without_bias, edited.share.sel(key="top patch"), atol=1e-5)


def test_tables_are_means_over_images(pictures):
    result = qkjax.attention_sinks(checkpoint_of("class and registers"), open_images(pictures), options=OPTIONS)
    written = describe(result)
    assert [*written.tables] == ["sinks", "heads", "norms"] and len(written.figures) == 3
    for row in written.tables["heads"]:
        own = result.isel(layer=row["layer"], head=row["head"])
        share, value = own.share.mean("image"), own.value_norm.mean("image")
        registers = [f"register {i}" for i in range(2)]
        np.testing.assert_allclose(row["class"], share.sel(key="class token"), rtol=1e-5)
        np.testing.assert_allclose(row["registers"], share.sel(key=registers).sum(), rtol=1e-5)
        ratio = value.sel(key=registers).mean() / value.sel(key="patches")
        np.testing.assert_allclose(row["registers_value"], ratio, rtol=1e-5)
        assert row["class_low"] <= row["class"] <= row["class_high"]
    for row in written.rows:
        own = [head for head in written.tables["heads"] if head["layer"] == row["layer"]]
        np.testing.assert_allclose(
            row["class_without_bias"], np.mean([h["class_without_bias"] for h in own]), rtol=1e-5
        )
    assert "No stage has patches of high norm" in result.attrs["summary"]
    assert all(draw() for draw in written.figures.values())


def test_intervals_resample_photographs_with_their_crops():
    """Three photographs of one, two and five images: weighted resamples of photographs, as in a plain loop."""
    clusters, values = ["a", *"bb", *"ccccc"], np.random.default_rng(0).random(8)
    own = by_photograph(values, clusters)
    estimates = []
    for counts in np.rint(3 * resamples(3, 1)).astype(int):
        drawn = [value for value, name in zip(values, clusters, strict=True) for _ in range(counts["abc".index(name)])]
        estimates.append(np.mean(drawn))
    np.testing.assert_allclose(own, [values.mean(), *np.quantile(estimates, [0.025, 0.975])], rtol=1e-9)


def test_crops_belong_to_their_photograph():
    """The default set has 15 photographs, whatever the number of crops."""
    images, _ = photographs().spread(6)
    result = qkjax.attention_sinks(checkpoint_of("patches only"), images, options=OPTIONS)
    assert list(result.photograph.values) == [name.split(" ")[0] for name in images.names]


SHAPES = {
    "normal": lambda rng, size: 0.5 * rng.standard_normal(size),
    "skewed": lambda rng, size: rng.exponential(0.7, size),
    "flat": lambda rng, size: rng.uniform(-1, 1, size),
    "heavy tails": lambda rng, size: 0.3 * rng.standard_t(2, size),
}


def test_images_of_a_folder_with_the_name_of_the_default_set_are_photographs_of_their_own(tmp_path):
    """Their names can begin with the same word."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("my cat.png", "my dog.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name)
    result = qkjax.attention_sinks(checkpoint_of("class and registers"), qkjax.images.open_images(folder))
    assert len(set(result.photograph.values)) == 2


def histogram(values: np.ndarray) -> np.ndarray:
    bins = ((values - values.min()) * 32).astype(int)
    return np.stack([np.bincount(row, minlength=bins.max() + 1) for row in bins])


@pytest.mark.parametrize("spread", [0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_distributions_with_one_peak_are_not_bimodal(shape, spread):
    """Locations differ between 15 photographs; none of 20 simulations may be called bimodal (5% would be one)."""
    rng = np.random.default_rng(0)
    found = [
        bimodality(histogram(SHAPES[shape](rng, (15, 4000)) + spread * rng.standard_normal((15, 1)))).is_bimodal
        for _ in range(20)
    ]
    assert not any(found)


def test_a_second_peak_is_found_in_many_photographs_but_not_in_one():
    rng = np.random.default_rng(0)
    values = 0.5 * rng.standard_normal((15, 4000)) + 0.2 * rng.standard_normal((15, 1))
    outliers = rng.random((15, 4000)) < 0.024 * rng.gamma(
        2, 0.5, (15, 1)
    )  # 2.4% of patches, as arXiv 2309.16588 reports
    many, one = values + 5 * outliers, values.copy()
    one[3, :2000] = 6 + 0.05 * rng.standard_normal(2000)
    found = bimodality(histogram(many))
    assert found.is_bimodal
    np.testing.assert_allclose(found.above, outliers.mean(), atol=1e-3)
    assert not bimodality(histogram(one)).is_bimodal
    assert not bimodality(histogram(many[:4])).is_bimodal  # too few photographs


def test_the_threshold_of_high_norms_lies_between_the_peaks():
    rng = np.random.default_rng(0)
    norms = np.exp2(5 + 0.2 * rng.standard_normal((40, 256))).astype(np.float32)
    norms[:, :8] *= 8
    clusters = [str(i // 4) for i in range(40)]
    depth, high, threshold = norm_valley(norms, clusters)
    assert depth <= high < 0.5 and norms[:, 8:].max() < threshold < norms[:, :8].min()
    assert np.isnan(norm_valley(1 / norms, clusters)[2])  # most patches are above the valley
    assert np.isnan(norm_valley(norms[:, 8:], clusters)[2])


def test_patches_of_high_norm_are_reported(pictures):
    result = qkjax.attention_sinks(checkpoint_of("class and registers"), open_images(pictures), options=OPTIONS)
    norms = result.patch_norm.values.copy()
    result["high_norm"] = ("stage", [np.nan, float(np.quantile(norms[:, 1], 0.75)), np.nan])
    rows = stage_rows(result)
    assert [row["high_norm_share"] for row in rows] == [0, pytest.approx(0.25, abs=0.01), 0]
    assert "patches of high norm" in describe(result).text
    assert describe(result).figures["token_norms"]().axes[0].get_lines()[-1].get_marker() == "x"


def test_the_command_writes_what_the_function_returns(tmp_path, pictures, monkeypatch, capsys):
    own = checkpoint_of("class and registers")
    write_checkpoint(tmp_path / "small.npz", own.config, own.params, own.preprocess)
    words = "sinks", tmp_path / "small.npz", "--images", pictures, "--batch", 2, "--out", tmp_path / "out"
    done = command(monkeypatch, capsys, *words)
    assert done.code == 0, done.err
    assert "share of attention under uniform attention: 0.0526" in done.out
    stored = xr.load_dataset(tmp_path / "out" / "sinks.nc")
    result = qkjax.attention_sinks(own, open_images(pictures), options=OPTIONS)
    for name in result.data_vars:
        np.testing.assert_array_equal(stored[name], result[name])
    assert head_rows(stored) == head_rows(result)
    assert {path.suffix for path in (tmp_path / "out").glob("sink*")} == {".nc", ".csv", ".png", ".pdf"}
