"""Checkpoints written by big_vision and vision_transformer themselves: parameters, outputs, modes.

Tolerance 1e-5: big_vision itself differs from float64 by 1e-6 (logits) to 8e-6 (intermediates) in
float32; the mistakes that matter (epsilon, GELU, transposition) change more than 1e-5.
"""

from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import qkjax
from conftest import DATA
from qkjax.images.preprocess import PRESETS
from qkjax.vit import posemb
from qkjax.vit.model import forward
from qkjax.weights.families.architecture import expected_shapes

FILES = "abcd"


def load_flat(name: str, **overrides) -> dict[str, np.ndarray]:
    return flatten_dict(qkjax.load(DATA / name, **overrides).params, sep="/")


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FILES)
def test_outputs_and_intermediates(name):
    checkpoint = qkjax.load(DATA / f"{name}.npz")
    expected = np.load(DATA / f"{name}_expected.npz")
    _, out = qkjax.ViT(checkpoint.config).apply({"params": checkpoint.params}, expected["images"])
    out = flatten_dict(out, sep="/")
    wanted = [key for key in expected.files if key.startswith("out/")]
    assert len(wanted) >= 5
    for key in wanted:
        np.testing.assert_allclose(out[key.removeprefix("out/")], expected[key], atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FILES)
def test_logits_in_float64(name):
    """In float64 an epsilon of 1e-5 in place of 1e-6 (1.8e-5 of the logits) would show."""
    checkpoint = qkjax.load(DATA / f"{name}.npz")
    expected = np.load(DATA / f"{name}_expected.npz")
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # as until jax 0.7
    with enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), checkpoint.params)
        model = qkjax.ViT(checkpoint.config, dtype="float64")
        logits, out = model.apply({"params": params}, expected["images"].astype(np.float64))
    # Sine-cosine positions (b) and the MAP head (c) are float32 by design.
    atol = 2e-6 if name in "bc" else 1e-12
    np.testing.assert_allclose(logits, expected["f64/logits"], rtol=0, atol=atol)
    np.testing.assert_allclose(out["pre_logits"], expected["f64/pre_logits"], rtol=0, atol=atol)


@pytest.mark.parametrize("name", FILES)
def test_modes(name):
    expected = np.load(DATA / f"{name}_expected.npz")
    modes = qkjax.decompose(qkjax.load(DATA / f"{name}.npz"))
    metrics = qkjax.measure(modes)
    scale = expected["modes/singular_values"].max()
    np.testing.assert_allclose(modes.s / scale, expected["modes/singular_values"] / scale, atol=1e-5)
    np.testing.assert_allclose(metrics.cosine, expected["modes/cosines"], atol=1e-5)
    if "modes/M" in expected:
        m = np.einsum("lhdn,lhn,lhen->lhde", *modes)
        np.testing.assert_allclose(m, expected["modes/M"], atol=1e-5 * scale)


def test_pre_linen_is_bit_for_bit_the_same_model():
    assert_same(load_flat("old1_prelinen.npz"), load_flat("a.npz"))


def test_scanned_is_bit_for_bit_the_same_model():
    assert_same(load_flat("d.npz"), load_flat("a.npz"))


def test_config_is_inferred():
    configs = {name: qkjax.load(DATA / f"{name}.npz").config for name in FILES}
    assert {n: (c.pool, c.posemb) for n, c in configs.items()} == {
        "a": ("tok", "learn"), "b": ("gap", "sincos2d"), "c": ("map", "learn"), "d": ("tok", "learn"),
    }  # fmt: skip
    for c in configs.values():
        assert (c.width, c.depth, c.heads, c.head_dim, c.mlp_dim, c.patch_size) == (64, 4, 4, 16, 128, (8, 8))
        assert (c.rep_size, c.classes, c.registers, c.layer_scale) == (64, 10, 0, False)


@pytest.mark.parametrize("name", FILES)
def test_shapes_of_one_layer_are_those_of_all_layers(name):
    config = qkjax.load(DATA / f"{name}.npz").config
    image = np.zeros((1, 32, 32, 3), np.float32)
    tree = jax.eval_shape(qkjax.ViT(config).init, jax.random.key(0), image)["params"]
    assert expected_shapes(config) == {k: v.shape for k, v in flatten_dict(tree, sep="/").items()}


def test_images_are_prepared_as_big_vision_does():
    """By pooling; for the grid of a learned position embedding, here of 4 x 4 patches of 8 pixels."""
    found = {name: qkjax.load(DATA / f"{name}.npz").preprocess for name in FILES}
    assert found["b"] == PRESETS["bigvision-small-crop"], "sine-cosine positions are for any size"
    assert found["a"] == replace(PRESETS["bigvision-small-crop"], crop=32, resize_to=37)
    assert found["c"] == replace(PRESETS["squash"], crop=32, resize_to=32)


@pytest.mark.parametrize(
    ("container", "sub"),
    [("params/{}", ""), ("opt/target/{}", ""), ("{}", ""), ("img/{}", ":img"), ("params/img/{}", ":img"),
     ("opt/target/model/vit/{}", ":model/vit")],
)  # fmt: skip
def test_containers(tmp_path, container, sub):
    flat = load_flat("c.npz")
    arrays = {container.format(k): v for k, v in flat.items()}
    extra = {"opt/state/step": np.int32(3), "chrono/accum": np.float64(1)} if "params" in container else {}
    if sub:
        above = container.format("").removesuffix(sub[1:] + "/")
        extra[above + "t"] = np.ones(1, np.float32)  # the temperature of a two-tower model
    path = tmp_path / "x.npz"
    np.savez(path, **arrays, **extra)
    assert_same(load_flat(f"{path}{sub}"), flat)


def test_numbered_file_name(tmp_path):
    """The trainer's copies are called checkpoint.npz-000012345: content decides, not the name."""
    (tmp_path / "checkpoint.npz-000012345").write_bytes((DATA / "c.npz").read_bytes())
    assert_same(load_flat(tmp_path / "checkpoint.npz-000012345"), load_flat("c.npz"))


def test_probe_at_the_top_level(tmp_path):
    flat = load_flat("c.npz")
    np.savez(tmp_path / "g.npz", **{k.removeprefix("MAPHead_0/"): v for k, v in flat.items()})
    assert_same(load_flat(tmp_path / "g.npz"), flat)


@pytest.mark.parametrize(
    "key", ["pos_embedding", "Transformer/pos_embedding", "Transformer/posembed_input/pos_embedding"]
)
@pytest.mark.parametrize("with_class_row", [True, False])
def test_position_embedding_and_class_row(tmp_path, key, with_class_row):
    flat = load_flat("a.npz")
    moved = dict(flat)
    table = moved.pop("pos_embedding")
    if with_class_row:
        table = np.concatenate([np.ones_like(table[:, :1]), table], axis=1)
        flat["cls"] = flat["cls"] + 1
    np.savez(tmp_path / "old.npz", **moved, **{key: table})
    assert_same(load_flat(tmp_path / "old.npz"), flat)


def test_grid_that_is_not_square_is_asked_for(tmp_path):
    """10 = 9 + 1 could be a class row and 3 x 3, or 2 x 5: big_vision guesses, we are told."""
    flat = load_flat("a.npz")
    flat["pos_embedding"] = np.concatenate([flat["pos_embedding"]] * 2, axis=1)[:, :10]
    np.savez(tmp_path / "wide.npz", **flat)
    wide = qkjax.load(tmp_path / "wide.npz", grid=(2, 5))
    assert wide.config.grid == (2, 5)
    np.testing.assert_array_equal(wide.params["cls"], flat["cls"])
    assert qkjax.load(tmp_path / "wide.npz").config.grid == (3, 3)
    logits, _ = forward(qkjax.ViT(wide.config), wide.params, np.zeros((1, 16, 40, 3), np.float32))
    assert np.isfinite(logits).all()
    flat["pos_embedding"] = flat["pos_embedding"][:, :6]
    np.savez(tmp_path / "odd.npz", **flat)
    with pytest.raises(qkjax.QkjaxError, match="6 tokens, which is not a square"):
        qkjax.load(tmp_path / "odd.npz")
    with pytest.raises(qkjax.QkjaxError, match="6 tokens, expected 2 x 2"):
        qkjax.load(tmp_path / "odd.npz", grid=(2, 2))


def test_gap_model_with_a_grid_that_looks_like_a_class_row(tmp_path):
    """Without a class token there is no class row, though 17 = 16 + 1."""
    flat = load_flat("b.npz") | {"pos_embedding": np.zeros((1, 17, 64), np.float32)}
    np.savez(tmp_path / "gap.npz", **flat)
    with pytest.raises(qkjax.QkjaxError, match="17 tokens"):
        qkjax.load(tmp_path / "gap.npz")
    assert qkjax.load(tmp_path / "gap.npz", grid=(1, 17)).params["pos_embedding"].shape == (1, 17, 64)


@pytest.mark.parametrize("pool", ["none", "0"])
def test_pooling_that_a_tree_does_not_show(pool):
    images = np.load(DATA / "b_expected.npz")["images"]
    checkpoint = qkjax.load(DATA / "b.npz", pool=pool)
    logits, out = qkjax.ViT(checkpoint.config).apply({"params": checkpoint.params}, images)
    every = out["logits_2d"].reshape(3, 16, 10)
    np.testing.assert_allclose(logits, every if pool == "none" else every[:, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["a", "c", "d"])
def test_bfloat16_as_big_vision_stores_it(tmp_path, name):
    """numpy writes bfloat16 as '|V2'; types are told apart array by array."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {k: file[k] for k in file.files if k.startswith("params/")}
    some = {k: v.astype(ml_dtypes.bfloat16) if "pos" in k or "kernel" in k else v for k, v in arrays.items()}
    np.savez(tmp_path / "x.npz", **some)
    with np.load(tmp_path / "x.npz") as file:
        assert file["params/pos_embedding"].dtype == np.dtype("V2")
    ours, exact = load_flat(tmp_path / "x.npz"), load_flat(f"{name}.npz")
    for key, value in exact.items():
        wanted = value.astype(ml_dtypes.bfloat16) if "pos" in key or "kernel" in key else value
        assert ours[key].dtype == wanted.dtype
        np.testing.assert_array_equal(ours[key], wanted)
    checkpoint = qkjax.load(tmp_path / "x.npz")
    logits, _ = forward(
        qkjax.ViT(checkpoint.config), checkpoint.params, np.load(DATA / f"{name}_expected.npz")["images"]
    )
    # bfloat16 weights move the logits by about 8e-3 (golden README)
    np.testing.assert_allclose(logits, np.load(DATA / f"{name}_expected.npz")["out/logits"], atol=0.1)


def test_fortran_order_and_big_endian(tmp_path):
    flat = load_flat("b.npz")
    np.savez(tmp_path / "x.npz", **{k: np.asfortranarray(v).astype(">f4", order="F") for k, v in flat.items()})
    assert_same(load_flat(tmp_path / "x.npz"), flat)


def test_tensorstore_folder(tmp_path):
    """Written with tensorstore, several chunks an array (as FSDP saves), found directly and through -LAST."""
    import tensorstore

    flat = load_flat("d.npz")
    for name, value in flat.items():
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "file",
                "path": str(tmp_path / "ckpt-000000007" / f"params~{name.replace('/', '~')}"),
            },
            "metadata": {"shape": value.shape, "chunks": [max(1, n // 2) for n in value.shape], "dtype": "<f4"},
        }
        tensorstore.open(spec, create=True).result().write(value).result()
    assert_same(load_flat(tmp_path / "ckpt-000000007"), flat)
    (tmp_path / "ckpt-LAST").write_text("000000007\n")
    assert_same(load_flat(tmp_path / "ckpt"), flat)
    chunk = next((tmp_path / "ckpt-000000007" / "params~embedding~kernel").glob("0.*"))
    chunk.unlink()
    with pytest.raises(qkjax.QkjaxError, match=r"embedding/kernel.*chunk .* is missing"):
        qkjax.load(tmp_path / "ckpt")
    (tmp_path / "ckpt-LAST").write_text("000000009")
    with pytest.raises(qkjax.QkjaxError, match="which does not exist: copy the checkpoint again"):
        qkjax.load(tmp_path / "ckpt")


@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (6, 6), (7, 7)])
def test_resampled_position_embedding(grid):
    expected = np.load(DATA / "resample_expected.npz")
    ours = posemb.resample(expected["posemb_src"], (4, 4), grid, "linear")
    np.testing.assert_allclose(ours, expected[f"posemb_{grid[0]}x{grid[1]}"], atol=1e-6)


@pytest.mark.gpu
def test_forward_at_another_resolution():
    expected = np.load(DATA / "resample_expected.npz")
    checkpoint = qkjax.load(DATA / "a.npz")
    _, out = qkjax.ViT(checkpoint.config).apply({"params": checkpoint.params}, expected["images48"])
    np.testing.assert_allclose(out["encoded"], expected["hires_encoded"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(out["pre_logits"], expected["hires_pre_logits"], atol=1e-5)


def test_sincos_embedding():
    expected = np.load(DATA / "resample_expected.npz")
    for name, grid in (("sincos_4x4x64", (4, 4)), ("sincos_3x5x8", (3, 5))):
        table = expected[name]
        np.testing.assert_allclose(posemb.sincos_2d(grid, table.shape[-1]).reshape(table.shape), table, atol=1e-6)
