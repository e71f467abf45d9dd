"""Splits the variance of the attention logits into parts of position and of content, exactly, within each image.

A query (with its bias, and after its rotation, if the model has rotary positions) is the sum of three parts: the mean
over images and places, the position part (the mean over images at its place, minus that mean) and the content (the
rest). Keys are split in the same way. The softmax over keys cancels all that is equal for the keys of a query, so the
logits are centred over keys, T_ij = logit_ij - mean_j logit_ij, and the mean of the keys cancels. Six terms remain:

    T_ij = sum_ab t_ij^ab,   t^ab = (part a of query i) . (part b of key j, centred over keys) / sqrt(d)
    a = mean, position, content;   b = position, content

The share of a term is its covariance with the whole, mean_ij t_ij^ab T_ij, so that the six parts add up exactly to the
variance of the logits. A query and a key of one image share content, so the terms are not uncorrelated. Covariances of
tokens therefore do not determine the parts, and each image is computed by itself, from d x d matrices.

Letters: B images, N tokens, H heads, d head_dim.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.runtime.precision import full_precision

QUERY_PARTS, KEY_PARTS = ("mean", "position", "content"), ("position", "content")


def logit_parts(
    query: Float[Array | np.ndarray, "B N H d"],
    key: Float[Array | np.ndarray, "B N H d"],
    query_mean: Float[Array | np.ndarray, "N H d"],
    key_mean: Float[Array | np.ndarray, "N H d"],
) -> Float[Array, "B H 3 2"]:
    """The six parts of the variance of each head's logits, for each image of one layer.

    Args:
      query, key: queries and keys whose products are the logits, with biases and after any rotation. All tokens count
        as queries and as keys, so select patches before if special tokens are to be left out.
      query_mean, key_mean: means over images of queries and keys at each place.

    Returns:
      The covariance of each term with the centred logits, by `QUERY_PARTS` and `KEY_PARTS`, in squared logits. The sum
      of the six numbers is the variance of the logits over pairs of tokens, centred over keys.

    Example:
      >>> import numpy as np
      >>> rng = np.random.default_rng(0)
      >>> query, key = rng.standard_normal((2, 5, 9, 3, 4)).astype(np.float32)
      >>> parts = logit_parts(query, key, query.mean(0), key.mean(0))
      >>> logits = np.einsum("bihd,bjhd->bhij", query, key) / 2
      >>> bool(np.allclose(parts.sum((2, 3)), logits.var(-1).mean(-1), rtol=1e-4))
      True
    """
    tokens, _, head_dim = query_mean.shape
    query, key = (jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)) for x in (query, key))
    overall = jnp.broadcast_to(query_mean.mean(0, keepdims=True), query_mean.shape)
    queries = jnp.stack(
        [*(jnp.broadcast_to(x[None], query.shape) for x in (overall, query_mean - overall)), query - query_mean[None]]
    )
    key = key - key.mean(1, keepdims=True)
    position = (key_mean - key_mean.mean(0, keepdims=True))[None]
    keys = jnp.stack([jnp.broadcast_to(position, key.shape), key - position])
    grams = (
        jnp.einsum("pbnhd,bnhe->pbhde", parts, whole, precision=full_precision())
        for parts, whole in ((queries, query), (keys, key))
    )
    return jnp.einsum("pbhde,rbhde->bhpr", *grams, precision="highest") / (tokens**2 * head_dim)
