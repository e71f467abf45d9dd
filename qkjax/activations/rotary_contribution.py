"""Computes how much each mode of Mbar contributes to the attention logits of an image, for rotary positions.

`qkjax.interaction.rotary.exact` defines the terms of the modes, and `qkjax.activations.contribution` defines shares.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.activations.contribution import weighted_logits
from qkjax.interaction.rotary.bias import bias_logits
from qkjax.interaction.rotary.exact import HeadMaps, project_rotated, rest_logits
from qkjax.interaction.rotary.rotation import Pairs, rotate


class RotaryContributions(NamedTuple):
    """Shares of all terms in the attention logits of each image, for one layer. All shares of a head add up to 1.

    The leading axis of each array is the choice of weights: equal weights for all keys (index 0), and keys weighted by
    their attention (index 1). Shares are NaN if the logits differ by no more than float32's rounding error.

    Attributes:
      modes: share of each mode of Mbar.
      rest: share of the remainder, which contains the planes with c = 0.
      query_bias, key_bias, constant: shares of y_i Wq R(delta) bk^T, bq R(delta) Wk^T y_j^T and bq R(delta) bk^T.
    """

    modes: Float[Array, "2 batch heads rank"]
    rest: Float[Array, "2 batch heads"]
    query_bias: Float[Array, "2 batch heads"]
    key_bias: Float[Array, "2 batch heads"]
    constant: Float[Array, "2 batch heads"]


def rotary_contributions(
    query: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    key: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    query_bias: Float[Array | np.ndarray, "heads head_dim"],
    key_bias: Float[Array | np.ndarray, "heads head_dim"],
    logits: Float[Array | np.ndarray, "batch heads tokens tokens"],
    attention: Float[Array | np.ndarray, "batch heads tokens tokens"],
    angles: Float[Array | np.ndarray, "tokens planes"] | Float[Array | np.ndarray, "tokens heads planes"],
    maps: HeadMaps,
    pairs: Pairs = "half",
    window: Int[Array | np.ndarray, "tokens"] | None = None,
) -> RotaryContributions:
    """Share of each mode of one layer in the attention logits of each image.

    In a layer with windows, shares are over the keys in the window of each query.

    Args:
      query, key: queries and keys of the layer before the rotation, including the biases, as `forward` captures them.
      query_bias, key_bias: biases of the layer; zeros if the model has none.
      logits, attention: "attention_logits" and "attention" of the layer, as `forward` captures them.
      angles: angles of all tokens, 0 for tokens that are not rotated.
      maps: maps of the layer, `HeadMaps(*(x[layer] for x in head_maps(...)))`.
      pairs: the columns of each plane.
      window: number of the window of each token; None if queries attend to all keys.
    """
    root = np.sqrt(query.shape[-1]).astype(np.float32)
    by_head = angles if angles.ndim == 3 else angles[:, None, :]
    contents = [jnp.asarray(x, jnp.float32) - bias[None, None] for x, bias in ((query, query_bias), (key, key_bias))]
    rotated = [rotate(x, by_head, pairs) for x in contents]
    alpha, beta = (jnp.moveaxis(x, 1, 2) for x in project_rotated(*rotated, maps.query, maps.key))
    alpha = alpha * (maps.s / root)[None, :, None]
    bias = bias_logits(*contents, query_bias, key_bias, angles, pairs)
    constant = jnp.broadcast_to(bias.constant[None], logits.shape)
    terms = jnp.stack([rest_logits(*rotated, maps.rest), bias.query, bias.key, constant], axis=2)
    uniform = jnp.full_like(attention, 1 / attention.shape[-1])
    if window is not None:
        same = jnp.asarray(window[:, None] == window[None])
        uniform = jnp.broadcast_to(same / same.sum(-1, keepdims=True), attention.shape).astype(attention.dtype)
        logits = within_windows(logits, window)
    weights = jnp.stack([uniform, jnp.asarray(attention)])
    over_images = jax.vmap(jax.vmap(_shares))
    modes, others = jax.vmap(over_images, in_axes=(None, None, None, None, 0))(alpha, beta, terms, logits, weights)
    return RotaryContributions(modes, *jnp.moveaxis(others, -1, 0))


def within_windows(
    logits: Float[Array | np.ndarray, "*heads tokens tokens"], window: Int[Array | np.ndarray, "tokens"] | None
) -> Float[Array, "*heads tokens tokens"]:
    """Replaces the logits of keys outside the window of the query, which are -inf, by 0."""
    return jnp.asarray(logits) if window is None else jnp.where(window[:, None] == window[None], logits, 0)


def _shares(
    query: Float[Array, "tokens rank"],
    key: Float[Array, "tokens rank"],
    terms: Float[Array, "terms tokens tokens"],
    logits: Float[Array, "tokens tokens"],
    weights: Float[Array, "tokens tokens"],
):
    """Shares of each mode and of each other term in the logits, for one head and one image."""
    weighted, total = weighted_logits(logits, weights)
    modes = (query * jnp.matmul(weighted, key, precision="highest")).sum(0)
    return modes / total, (weighted[None] * terms).sum((1, 2)) / total
