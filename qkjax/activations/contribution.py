"""The share of each mode in the attention logits of an image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.activations.project import project

ROUNDING = 1e-4
"""Relative rounding of float32 logits, with a margin: their differences must be known to about a percent."""


class Contributions(NamedTuple):
    """Shares in the logits of an image; see `contributions`. (One layer, or layers stacked.)

    `variance` weighs all keys alike, `attention` as the attention does. The key-bias term has a share
    too, and relative position biases what is then left to 1. A share is negative where a mode works
    against the sum of all. NaN where the logits differ by no more than float32's rounding: all
    attention is on one key, say.
    """

    variance: Float[Array, "*layers batch heads rank"]
    attention: Float[Array, "*layers batch heads rank"]
    key_bias_variance: Float[Array, "*layers batch heads"]
    key_bias_attention: Float[Array, "*layers batch heads"]


def contributions(
    tokens: Float[Array | np.ndarray, "batch tokens embed"],
    logits: Float[Array | np.ndarray, "batch heads tokens tokens"],
    attention: Float[Array | np.ndarray, "batch heads tokens tokens"],
    u: Float[Array | np.ndarray, "heads embed rank"],
    s: Float[Array | np.ndarray, "heads rank"],
    v: Float[Array | np.ndarray, "heads embed rank"],
    key_direction: Float[Array | np.ndarray, "heads embed"],
    head_dim: int,
) -> Contributions:
    """The share that each mode of one layer has in the attention logits of each image (for the paper's
    figure 5, which shows the modes that contribute most and leaves open what that means).

    A mode's term is t_ij = s_n (y_i . u_n) (y_j . v_n) / sqrt(d). Softmax sees only how the logits of
    one query differ between keys, so terms are centred over the keys of each query: T = t - sum_j w_ij t,
    and likewise the logits. The share is the covariance sum_ij w_ij T_ij Logit_ij over the variance
    sum_ij w_ij Logit_ij^2, so that the shares of all terms add up to 1:

    - `variance`: all keys weigh alike, w_ij = 1 / N: share of the centred logits' variance;
    - `attention`: w_ij is the attention, so that only keys that are attended to count.

    All tokens are queries and keys, special ones too, as in the model.

    Args:
      tokens, logits, attention: the layer's "norm", "attention_logits" and "attention" of `forward`.
      u, s, v: the layer's modes, in the plain frame (no folding).
      key_direction: the layer's, of `bias_terms`.
      head_dim: of the model.
    """
    root = np.sqrt(head_dim).astype(np.float32)
    projected = project(tokens, u, v)
    query = jnp.moveaxis(projected[:, :, 0] * s[None, None] / root, 1, 2)
    key = jnp.moveaxis(projected[:, :, 1], 1, 2)
    bias = jnp.einsum("bnd,hd->bhn", tokens, key_direction, precision="highest") / root
    shares = jax.vmap(jax.vmap(_shares))
    alike = jnp.full_like(attention, 1 / attention.shape[-1])
    (variance, of_bias), (weighted, weighted_of_bias) = (
        shares(query, key, bias, logits, w) for w in (alike, attention)
    )
    return Contributions(variance, weighted, of_bias, weighted_of_bias)


def _shares(
    query: Float[Array, "tokens rank"],
    key: Float[Array, "tokens rank"],
    bias: Float[Array, "tokens"],
    logits: Float[Array, "tokens tokens"],
    weights: Float[Array, "tokens tokens"],
):
    """Of one head and image: each mode's share, and that of the key bias. The query map carries
    s / sqrt(d); the weights of a query sum to 1."""
    centred = logits - (weights * logits).sum(-1, keepdims=True)
    centred = centred - (weights * centred).sum(-1, keepdims=True)  # what rounding left of a mean far from 0
    pull = weights * centred  # its rows sum to 0, so that a term itself need not be centred
    total = (pull * centred).sum()
    of_modes = (query * jnp.matmul(pull, key, precision="highest")).sum(0)
    spread = jnp.sqrt(total / len(logits))
    total = jnp.where(spread > ROUNDING * jnp.abs(logits).max(), total, jnp.nan)
    return of_modes / total, (pull * bias[None]).sum() / total
