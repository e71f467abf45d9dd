"""Maintains the top k images of every mode during a pass. The memory use does not grow with the number of images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32


class Top(NamedTuple):
    """The k images with the highest scores for each mode, best first.

    Attributes:
      score: score of each image; -inf in empty places if there are fewer than k images.
      image: index of each image; -1 in empty places if there are fewer than k images.
    """

    score: Float[Array | np.ndarray, "*modes k"]
    image: Int32[Array | np.ndarray, "*modes k"]


def empty(shape: tuple[int, ...], k: int) -> Top:
    """An empty top-k, with which a pass starts."""
    return Top(jnp.full((*shape, k), -jnp.inf, jnp.float32), jnp.full((*shape, k), -1, jnp.int32))


def add(
    top: Top,
    scores: Float[Array, "batch *modes"],
    index: Int32[Array, "batch"],
    values: Int32[Array, "batch *modes"] | None = None,
) -> Top:
    """Adds the images of a batch to the top-k. Among images with equal scores, the one added first ranks higher.

    Args:
      top: the top-k of earlier batches.
      scores: scores of the images in the batch.
      index: indices of the images in the batch; an image with index -1 is ignored.
      values: non-negative numbers, for each image and mode, that are stored instead of the index.
    """
    k = top.score.shape[-1]
    scores = jnp.moveaxis(scores, 0, -1)
    valid = (index >= 0).reshape((1,) * (scores.ndim - 1) + (-1,))
    scores = jnp.where(valid & ~jnp.isnan(scores), scores, -jnp.inf)
    stored = index.reshape(valid.shape) if values is None else jnp.moveaxis(values, 0, -1)
    images = jnp.broadcast_to(stored, scores.shape)
    best, places = jax.lax.top_k(jnp.concatenate([top.score, scores], -1), k)  # keeps the order of equal scores
    images = jnp.take_along_axis(jnp.concatenate([top.image, images], -1), places, -1)
    return Top(best, jnp.where(best > -jnp.inf, images, -1))


def merge(tops: Top) -> Top:
    """Merges the top-k of several subsets of the images. The inputs are stacked along a first axis.

    Among images with equal scores, the image with the smaller index ranks higher, as if all images had been added in
    order.
    """
    k = tops.score.shape[-1]
    score, image = (np.concatenate(list(np.asarray(x)), axis=-1) for x in tops)
    order = np.lexsort((np.where(image < 0, np.iinfo(np.int32).max, image), -score))[..., :k]
    return Top(*(np.take_along_axis(x, order, -1) for x in (score, image)))
