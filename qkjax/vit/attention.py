"""Attention whose logits and weights no caller requests, in the form that is fastest on each platform.

Letters: B images, M queries, N keys, H heads, d head_dim.

`mixed_values` gives the same numbers as `softmax(q k^T / sqrt(d)) v`, up to rounding, but need not store arrays of
shape (B, H, M, N).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Queries = Float[Array, "B M H d"]
Keys = Float[Array, "B N H d"]
Bias = Float[Array, "#H M N"]
Precision = jax.lax.Precision | jax.lax.DotAlgorithmPreset | None

UNROLLED_HEADS = 8
"""Up to this number of heads, a CPU computes the heads independently of each other, so that they can run at the same
time. With more heads, a loop over heads keeps the time for compilation short."""


def attention_logits(query: Queries, key: Keys, bias: Bias | None, precision: Precision) -> Float[Array, "B H M N"]:
    """The logits q k^T / sqrt(d) plus the bias, in float32 (in float64 for float64 queries)."""
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", _scaled(query), key, precision=precision, preferred_element_type=_wide(query.dtype)
    )
    return logits if bias is None else logits + bias[None]


def weighted_values(weights: Float[Array, "B H M N"], value: Keys, precision: Precision) -> Float[Array, "B M H d"]:
    """The values, weighted by given attention."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value, precision=precision)


def mixed_values(
    query: Queries, key: Keys, value: Keys, bias: Bias | None, precision: Precision
) -> Float[Array, "B M H d"]:
    """The values, weighted by attention.

    - On a CPU, each head is computed by itself. The product over (image, token, head, dimension) would transpose its
      factors, and takes 1.7 times as long.
    - On an NVIDIA GPU, cuDNN's fused attention computes half-precision attention without a bias.
    - Otherwise, XLA computes the logits and the softmax.

    Args:
      query, key, value: queries (not divided by sqrt(d)), keys and values.
      bias: a bias for the logits of each head, or None.
      precision: precision of the matrix products.
    """
    forms = {"cpu": partial(_by_head, precision=precision)}
    if bias is None and _is_fused_available(query, key, value):
        forms["cuda"] = _fused
    return jax.lax.platform_dependent(
        query, key, value, bias, **forms, default=partial(_by_softmax, precision=precision)
    )


def _by_softmax(query, key, value, bias, *, precision):
    weights = jax.nn.softmax(attention_logits(query, key, bias, precision), axis=-1)
    return weighted_values(weights, value, precision)


def _by_head(query, key, value, bias, *, precision):
    """Computes each head by itself. The weights are normalised last, since the values are smaller than the weights."""

    def head(q, k, v, own_bias):
        logits = jnp.einsum("bqd,bkd->bqk", q, k, precision=precision, preferred_element_type=_wide(q.dtype))
        logits = logits if own_bias is None else logits + own_bias[None]
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        mixed = jnp.einsum("bqk,bkd->bqd", weights.astype(v.dtype), v, precision=precision)
        return (mixed / total).astype(v.dtype)

    batch, queries, heads, _ = query.shape
    query = _scaled(query)
    if heads <= UNROLLED_HEADS:
        biases = (None,) * heads if bias is None else bias
        parts = [head(*(x[:, :, i] for x in (query, key, value)), biases[i]) for i in range(heads)]
        return jnp.concatenate(parts, axis=-1).reshape(batch, queries, heads, -1)
    by_head = (*(jnp.moveaxis(x, 2, 0) for x in (query, key, value)), bias)
    return jnp.moveaxis(jax.lax.map(lambda inputs: head(*inputs), by_head), 0, 2)


def _fused(query, key, value, bias):
    even = query.shape[1] % 2 == key.shape[1] % 2 == 0
    return _cudnn(query, key, value) if even else _fused_forward(query, key, value)


def _cudnn(query, key, value):
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@jax.custom_vjp
def _fused_forward(query, key, value):
    """cuDNN's attention without its derivative, which jax refuses for odd numbers of tokens."""
    return _cudnn(query, key, value)


_fused_forward.defvjp(
    lambda *inputs: jax.vjp(partial(_by_softmax, bias=None, precision=None), *inputs), lambda pull, slope: pull(slope)
)


def _is_fused_available(query, key, value) -> bool:
    """Whether jax has cuDNN's fused attention for these shapes: half precision, and heads of 8, 16, ... 128 numbers."""
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    try:
        jax.eval_shape(partial(_fused, bias=None), query, key, value)
    except (RuntimeError, NotImplementedError, ValueError):  # no cuDNN here; unsupported shape
        return False
    return True


def _scaled(query):
    return query / np.sqrt(query.shape[-1]).astype(query.dtype)


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)
