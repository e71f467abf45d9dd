"""The model with rotary positions: its arithmetic in float64, captures, precision, and stored configurations."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from conftest import DATA
from qkjax.vit.config import ViTConfig
from qkjax.vit.layers import _rotated
from qkjax.vit.model import CAPTURES, forward
from qkjax.vit.rotary import patch_rotation
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.checkpoint import stored_config, write_checkpoint

GRID = (3, 5)
SIZES = {"width": 24, "depth": 2, "heads": 3, "head_dim": 8, "mlp_dim": 32, "patch_size": (4, 4), "pool": "tok",
         "class_token": True, "registers": 2}  # fmt: skip
KINDS = {
    "DINOv3": {"rotary": Rotary(100.0, "centred", pairs="half"), "posemb": "none"},
    "learned positions too": {"rotary": Rotary(1e4, offset=1.0, first="columns"), "grid": (4, 4)},
    "scaled": {"rotary": Rotary(1e4, reference=(6, 6)), "posemb": "none"},
}


def model_of(kind: str, dtype: str = "float32"):
    """A small model whose parameters all differ from their initial values, and two images that are not square."""
    config = ViTConfig(**SIZES, **KINDS[kind])
    rng = np.random.default_rng(3)
    images = rng.normal(size=(2, 4 * GRID[0], 4 * GRID[1], 3)).astype(np.float32)
    params = jax.jit(qkjax.ViT(config).init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: (np.asarray(x) + 0.3 * rng.normal(size=x.shape)).astype(np.float32), params)
    return qkjax.ViT(config, dtype=dtype), params, images


def angle(rotary: Rotary, row: int, column: int, plane: int) -> float:
    """The angle by which one patch rotates one of the four planes of a head of 8 columns, after the definition."""
    is_row = (plane < 2) == (rotary.first == "rows")
    index, axis = (row, 0) if is_row else (column, 1)
    if rotary.coordinates == "centred":
        place = 2 * np.pi * (2 * (index + 0.5) / GRID[axis] - 1)
    else:
        place = (index + rotary.offset) * (rotary.reference[axis] / GRID[axis] if rotary.reference else 1)
    return place * rotary.temperature ** (-(plane % 2) / 2)


def rotated(x, rotary: Rotary):
    """Rotates the patches with one dense 8 x 8 matrix for each patch; the first three tokens stay."""
    result = x.copy()
    for patch in range(GRID[0] * GRID[1]):
        matrix = np.zeros((8, 8))
        for plane in range(4):
            a, b = (plane, plane + 4) if rotary.pairs == "half" else (2 * plane, 2 * plane + 1)
            theta = angle(rotary, *divmod(patch, GRID[1]), plane)
            matrix[a, a] = matrix[b, b] = np.cos(theta)
            matrix[a, b], matrix[b, a] = np.sin(theta), -np.sin(theta)
        result[:, :, 3 + patch] = x[:, :, 3 + patch] @ matrix
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_brute_force(kind):
    model, params, images = model_of(kind)
    output, seen = forward(model, params, images, CAPTURES)
    seen = {name: np.asarray(value, np.float64) for name, value in seen.items()}
    own = qkjax.query_key(params)
    for name in ("query", "key"):
        kernel, bias = (np.asarray(getattr(own, f"{name}_{part}"), np.float64) for part in ("kernel", "bias"))
        before = np.einsum("lbnd,ldhk->lbnhk", seen["norm"], kernel) + bias[:, None, None]
        np.testing.assert_allclose(seen[name], before, atol=2e-5)
        np.testing.assert_allclose(
            seen[f"rotated_{name}"], rotated(before, model.config.rotary), atol=2e-5 * abs(before).max()
        )
        np.testing.assert_array_equal(seen[f"rotated_{name}"][:, :, :3], seen[name][:, :, :3])
        assert abs(seen[f"rotated_{name}"] - seen[name])[:, :, 3:].max() > 0.1
    query, key = (rotated(seen[name], model.config.rotary) for name in ("query", "key"))
    logits = np.einsum("lbqhk,lbnhk->lbhqn", query, key) / np.sqrt(8)
    np.testing.assert_allclose(seen["attention_logits"], logits, atol=1e-5 * np.ptp(logits))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(seen["attention"], weights / weights.sum(-1, keepdims=True), atol=2e-5)
    fused, _ = forward(model, params, images)  # without captures, attention is computed head by head
    np.testing.assert_allclose(fused, output, atol=2e-5 * np.ptp(output))
    plain, _ = forward(qkjax.ViT(replace(model.config, rotary=None)), params, images)
    assert abs(fused - plain).max() > 1e-3 * np.ptp(output)


def test_without_rotary_positions_the_captures_are_equal():
    checkpoint, images = qkjax.load(DATA / "a.npz"), np.load(DATA / "a_expected.npz")["images"]
    _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, CAPTURES)
    for name in ("query", "key"):
        np.testing.assert_array_equal(seen[name], seen[f"rotated_{name}"])
    assert "rotary" not in checkpoint.config.to_dict()


def test_bfloat16_rotates_in_float32():
    """Each number is rounded once: XLA may skip the rounding of the queries within jit, so this calls the function."""
    model, params, images = model_of("DINOv3", "bfloat16")
    _, seen = forward(model, params, images, ("query", "rotated_query"))
    assert seen["rotated_query"].dtype == seen["query"].dtype == jnp.bfloat16
    exact = rotated(np.asarray(seen["query"], np.float64), model.config.rotary)[0]
    once = np.asarray(_rotated(seen["query"][0], patch_rotation(model.config, GRID)), np.float64)
    assert np.all(abs(once - exact) <= 2.0**-8 * abs(exact) + 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_model_is_restored(kind, tmp_path):
    model, params, images = model_of(kind)
    write_checkpoint(tmp_path / "m.npz", model.config, params)
    checkpoint = qkjax.load(tmp_path / "m.npz")
    assert checkpoint.config == model.config
    assert "rotary positions" in repr(checkpoint)
    again, _ = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images)
    np.testing.assert_array_equal(again, forward(model, params, images)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temperature": 100.0, "speed": 1}', "unknown field 'speed'"),
        ('{"temperature": -1}', "temperature=-1: expected a positive number"),
        ('{"temperature": 1.5, "reference": [4]}', r"reference=\(4,\): expected None or two positive"),
        ('{"temperature": 1.5, "pairs": "all"}', "pairs='all': expected 'half' or 'interleaved'"),
        ('{"offset": 1}', "no field 'temperature'"),
        ("[1]", "expected an object"),
    ],
)
def test_bad_rotary_fields_are_refused(text, message):
    with pytest.raises(qkjax.QkjaxError, match=message):
        stored_config(f'{{"width": 8, "rotary": {text}}}')


def test_heads_that_do_not_divide_are_refused():
    config = ViTConfig(**(SIZES | {"head_dim": 6}), **KINDS["DINOv3"])
    with pytest.raises(qkjax.QkjaxError, match="head_dim is 6"):
        qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 12, 20, 3), np.float32))
