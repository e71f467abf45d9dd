"""Computes how much each mode contributes to the attention logits of an image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.activations.project import project

ROUNDING = 1e-4
"""Relative rounding error of float32 logits, including a safety margin. Contributions are accurate to about a percent
only if logits differ by more than this error."""


class Contributions(NamedTuple):
    """Shares of the modes in the attention logits of each image, for one layer or stacked layers; see `contributions`.

    In a model without relative position biases, the shares of all modes and of the key bias add up to 1. In a model
    with relative position biases, the remaining share is that of these biases. A share is negative if a mode
    counteracts the sum of all terms. Shares are NaN if the logits differ by no more than float32's rounding error, for
    example because all attention is on one key.

    Attributes:
      variance: share of each mode, with equal weights for all keys.
      attention: share of each mode, with keys weighted by their attention.
      key_bias_variance, key_bias_attention: shares of the key bias term, with keys weighted in the same two ways.
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
    """Computes, for each image, the share of each mode of one layer in the attention logits.

    (The paper's figure 5 shows the modes that contribute most, but the paper does not define the contribution.)

    A mode adds the term t_ij = s_n (y_i . u_n) (y_j . v_n) / sqrt(d) to the logit of query i and key j. The softmax
    depends only on how the logits of a query differ between keys. The terms are therefore centred over the keys of each
    query, T_ij = t_ij - sum_j w_ij t_ij, and the logits are centred in the same way. The share of a mode is the
    covariance sum_ij w_ij T_ij Logit_ij divided by the variance sum_ij w_ij Logit_ij^2, so that the shares of all terms
    add up to 1. There are two choices of the weights w:

    - `variance`: w_ij = 1 / N for N keys; the result is the share of the variance of the centred logits;
    - `attention`: w_ij is the attention, so that only attended keys contribute.

    All tokens, including special tokens, are queries and keys, as in the model.

    Args:
      tokens, logits, attention: "norm", "attention_logits" and "attention" of the layer, as `forward` captures them.
      u, s, v: modes of the layer, in the plain frame (see `Frame`).
      key_direction: direction b of the key bias term b . y_j in each head of the layer; see `bias_terms`.
      head_dim: head dimension of the model.
    """
    root = np.sqrt(head_dim).astype(np.float32)
    projected = project(tokens, u, v)
    query = jnp.moveaxis(projected[:, :, 0] * s[None, None] / root, 1, 2)
    key = jnp.moveaxis(projected[:, :, 1], 1, 2)
    bias = jnp.einsum("bnd,hd->bhn", tokens, key_direction, precision="highest") / root
    shares = jax.vmap(jax.vmap(_shares))
    uniform = jnp.full_like(attention, 1 / attention.shape[-1])
    (variance, bias_variance), (weighted, bias_weighted) = (
        shares(query, key, bias, logits, w) for w in (uniform, attention)
    )
    return Contributions(variance, weighted, bias_variance, bias_weighted)


def _shares(
    query: Float[Array, "tokens rank"],
    key: Float[Array, "tokens rank"],
    bias: Float[Array, "tokens"],
    logits: Float[Array, "tokens tokens"],
    weights: Float[Array, "tokens tokens"],
):
    """Computes the shares of each mode and of the key bias in the logits of one head for one image.

    `query` includes the factor s / sqrt(d), and the weights of each query sum to 1.
    """
    weighted, total = weighted_logits(logits, weights)
    covariance = (query * jnp.matmul(weighted, key, precision="highest")).sum(0)
    return covariance / total, (weighted * bias[None]).sum() / total


def weighted_logits(
    logits: Float[Array, "tokens tokens"], weights: Float[Array, "tokens tokens"]
) -> tuple[Float[Array, "tokens tokens"], Float[Array, ""]]:
    """Computes w_ij Logit_ij with centred logits, and sum_ij w_ij Logit_ij^2.

    The share of a term t_ij in the logits is sum_ij w_ij Logit_ij t_ij, divided by the second result. The second result
    is NaN if the logits differ by no more than float32's rounding error.
    """
    centred = logits - (weights * logits).sum(-1, keepdims=True)
    centred = centred - (weights * centred).sum(-1, keepdims=True)  # removes the rounding error of a mean far from 0
    weighted = weights * centred  # the rows of `weighted` sum to 0, so the terms need no centring
    total = (weighted * centred).sum()
    spread = jnp.sqrt(total / len(logits))
    return weighted, jnp.where(spread > ROUNDING * jnp.abs(logits).max(), total, jnp.nan)
