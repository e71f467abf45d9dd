"""Attention that nobody reads, and the activations, against float64 numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import qkjax
from qkjax.vit.attention import UNROLLED_HEADS, attention_logits, mixed_values, weighted_values
from qkjax.vit.layers import ACTIVATIONS
from qkjax.vit.model import forward
from qkjax.vit.tree import stacked_outputs

HIGHEST = jax.lax.Precision.HIGHEST


def arrays(queries: int = 11, keys: int = 13, heads: int = 3, head_dim: int = 8) -> tuple[np.ndarray, ...]:
    """Queries, keys, values and biases; the first head has logits that overflow exp in float32."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, n, heads, head_dim)) for n in (queries, keys, keys))
    query[:, :, 0] *= 100
    return query, key, value, rng.standard_normal((heads, queries, keys))


def by_numpy(query, key, value, bias):
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]) + bias
    return np.einsum("bhqk,bkhd->bqhd", scipy.special.softmax(logits, -1), value)


@pytest.mark.parametrize("heads", [3, UNROLLED_HEADS + 1])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_values_are_mixed_as_in_float64(heads, biased, dtype, error):
    *inputs, bias = arrays(heads=heads)
    bias = bias if biased else np.zeros_like(bias)
    rounded = [jnp.asarray(x, dtype) for x in inputs]
    wanted = by_numpy(*(np.asarray(x, np.float64) for x in rounded), bias)
    found = mixed_values(*rounded, jnp.asarray(bias, jnp.float32) if biased else None, HIGHEST)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64)[:, :, 1:], wanted[:, :, 1:], atol=error)
    assert np.isfinite(np.asarray(found, np.float64)).all()
    if dtype == "float32":  # bfloat16 rounds logits of this size by several units
        np.testing.assert_allclose(found[:, :, 0], wanted[:, :, 0], atol=1e-3)


@pytest.mark.parametrize("heads", [3, UNROLLED_HEADS + 1])
def test_gradients_are_those_of_the_softmax(heads):
    *inputs, bias = (jnp.asarray(x, jnp.float32) for x in arrays(13, heads=heads))
    inputs[0] = inputs[0].at[:, :, 0].multiply(0.01)

    def softmax(query, key, value, bias):
        return weighted_values(jax.nn.softmax(attention_logits(query, key, bias, HIGHEST), -1), value, HIGHEST)

    def loss(mix, *args):
        return (mix(*args) ** 2).sum()

    forms = softmax, partial(mixed_values, precision=HIGHEST)
    slopes = [jax.grad(partial(loss, form), argnums=(0, 1, 2, 3))(*inputs, bias) for form in forms]
    for wanted, found in zip(*slopes, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_reading_attention_changes_no_output(name):
    """Beyond rounding: if attention is read, the model computes it in another form."""
    checkpoint = qkjax.load(f"tests/data/{name}.npz")
    side = checkpoint.preprocess.crop
    images = np.random.default_rng(0).standard_normal((3, side, side, 3)).astype(np.float32)
    model = qkjax.ViT(checkpoint.config)
    plain, _ = forward(model, checkpoint.params, images)
    read, captured = forward(model, checkpoint.params, images, ("attention", "attention_logits"))
    np.testing.assert_allclose(read, plain, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_allclose(captured["attention"].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(captured["attention_logits"]), captured["attention"], atol=1e-6)
    some = np.array([2, 0])
    output, out = model.apply({"params": checkpoint.params}, images, capture=("attention",), queries=some)
    np.testing.assert_allclose(output, plain, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_allclose(stacked_outputs(out, "attention"), captured["attention"][..., some, :], atol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 2.5e-7), ("bfloat16", 4e-3)])
def test_exact_gelu(dtype, error):
    """The error is relative to |x|, as large as one unit in the last place of x."""
    x = np.asarray(jnp.asarray(np.linspace(-12, 12, 100_001), dtype), np.float64)
    wanted = x * scipy.special.ndtr(x)
    found = np.asarray(ACTIVATIONS["gelu"](jnp.asarray(x.reshape(1, 1, -1), dtype)), np.float64).ravel()
    assert (np.abs(found - wanted) <= error * np.abs(x) + 1e-30).all()


def test_attention_of_some_queries_has_the_relative_position_bias():
    config = qkjax.ViTConfig(
        width=24, depth=2, heads=3, head_dim=8, mlp_dim=32, patch_size=(4, 4), grid=(2, 3), class_token=True,
        posemb="none", pool="tok", relative_positions=True,
    )  # fmt: skip
    model, images = qkjax.ViT(config), np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    _, whole = model.apply({"params": params}, images, capture=("attention", "attention_logits"))
    some = np.array([0, 5, 3])
    _, out = model.apply({"params": params}, images, capture=("attention", "attention_logits"), queries=some)
    for name in ("attention", "attention_logits"):
        expected = stacked_outputs(whole, name)[..., some, :]
        np.testing.assert_allclose(stacked_outputs(out, name), expected, atol=1e-5 * np.abs(expected).max())
