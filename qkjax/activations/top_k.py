"""A running top-k of images for every mode, whose memory does not grow with the number of images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32


class Top(NamedTuple):
    """The best k images for each of any number of things, best first.

    Attributes:
      score: -inf where there were fewer than k images.
      image: index of the image, -1 there.
    """

    score: Float[Array | np.ndarray, "*modes k"]
    image: Int32[Array | np.ndarray, "*modes k"]


def empty(shape: tuple[int, ...], k: int) -> Top:
    """Before the first image."""
    return Top(jnp.full((*shape, k), -jnp.inf), jnp.full((*shape, k), -1, jnp.int32))


def add(
    top: Top,
    scores: Float[Array, "batch *modes"],
    index: Int32[Array, "batch"],
    noted: Int32[Array, "batch *modes"] | None = None,
) -> Top:
    """With a batch's images. Of equal scores the image that came first stays.

    Args:
      scores: of the batch's images.
      index: theirs; those with -1 are passed over.
      noted: kept of each image in place of its index, mode by mode; from 0 up.
    """
    k = top.score.shape[-1]
    scores = jnp.moveaxis(scores, 0, -1)
    is_there = (index >= 0).reshape((1,) * (scores.ndim - 1) + (-1,))
    scores = jnp.where(is_there & ~jnp.isnan(scores), scores, -jnp.inf)
    own = index.reshape(is_there.shape) if noted is None else jnp.moveaxis(noted, 0, -1)
    images = jnp.broadcast_to(own, scores.shape)
    best, at = jax.lax.top_k(jnp.concatenate([top.score, scores], -1), k)  # equal ones in their order
    images = jnp.take_along_axis(jnp.concatenate([top.image, images], -1), at, -1)
    return Top(best, jnp.where(best > -jnp.inf, images, -1))


def merge(tops: Top) -> Top:
    """Tops of several shares of the images, stacked along a first axis, into that of all of them.

    Of equal scores the image of the smaller index comes first, as if one had seen all images in order.
    """
    k = tops.score.shape[-1]
    score, image = (np.concatenate(list(np.asarray(x)), axis=-1) for x in tops)
    order = np.lexsort((np.where(image < 0, np.iinfo(np.int32).max, image), -score))[..., :k]
    return Top(*(np.take_along_axis(x, order, -1) for x in (score, image)))
