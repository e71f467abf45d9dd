"""Maintains the top k images of every mode during a pass, and the query and key maps of the first modes on them.

Letters: S scores, L layers, H heads, R modes of a head, M modes of a head with maps, K places, B images, P patches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from qkjax.activations import top_k
from qkjax.activations.top_k import Top


class TopMaps(NamedTuple):
    """The images with the highest scores for each mode, and the maps of each head's first modes on these images.

    Attributes:
      top: images and scores, of shape (S, L, H, R, 2, K).
      maps: query map (index 0) and key map (index 1) of (u, v) on the top images of the first score, for both signs.
        Maps are NaN if there is no image.
    """

    top: Top
    maps: Float[Array | np.ndarray, "layers heads mapped 2 places 2 patches"]


def empty(shape: tuple[int, int, int, int], k: int, mapped: int, patches: int) -> TopMaps:
    """A top-k without images.

    Args:
      shape: number of scores, of layers, of heads per layer, and of modes per head.
      mapped: number of modes per head that have maps.
    """
    return TopMaps(top_k.empty((*shape, 2), k), jnp.full((*shape[1:3], mapped, 2, k, 2, patches), jnp.nan, jnp.float32))


def add(
    state: TopMaps,
    scores: Float[Array, "batch scores layers heads modes 2"],
    index: Int32[Array, "batch"],
    maps: Float[Array, "layers heads mapped batch 2 patches"],
) -> TopMaps:
    """Adds the images of a batch (see `top_k.add`) and their maps. Maps of images that drop out are replaced."""
    top = top_k.add(state.top, scores, index)
    images, before = _mapped_images(top, state.maps), _mapped_images(state.top, state.maps)
    added = _maps_of(images, index[None, None, None, None], maps[:, :, :, None])
    return TopMaps(top, jnp.where(jnp.isnan(added), _maps_of(images, before, state.maps), added))


def merge(states: Sequence[TopMaps]) -> TopMaps:
    """Merges the top-k of several subsets of the images (see `top_k.merge`), and their maps."""
    top = top_k.merge(Top(*(np.stack(arrays) for arrays in zip(*(state.top for state in states), strict=True))))
    found = np.concatenate([_mapped_images(*state) for state in states], axis=-1)
    maps = np.concatenate([state.maps for state in states], axis=-3)
    return TopMaps(top, _maps_of(_mapped_images(top, maps), found, maps))


def _mapped_images(top: Top, maps: Array | np.ndarray) -> Int32[Array | np.ndarray, "layers heads mapped 2 places"]:
    """The top images, according to the first score, of the modes that have maps."""
    return top.image[0, :, :, : maps.shape[2]]


def _maps_of(images, found, maps):
    """Selects the maps of `images` (..., K) from those of the images `found` (..., N); NaN for all other images."""
    same = (images[..., :, None] == found[..., None, :]) & (images >= 0)[..., None]
    taken = jnp.take_along_axis(maps, same.argmax(-1)[..., None, None], axis=-3)
    return jnp.where(same.any(-1)[..., None, None], taken, jnp.nan)
