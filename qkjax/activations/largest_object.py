"""Finds the query object and the key object of a mode in an image: the objects with the largest mean projections."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chosen_objects(
    values: Float[Array, "patches *modes"], objects: Float[Array, "objects patches"]
) -> Int[Array, "*modes 2"]:
    """The index of the object with the largest mean projection, for each mode and both of its signs.

    For the opposite sign of a mode, the map is the negative of the map in `values`.

    Args:
      values: query or key maps over the patches.
      objects: share of each patch that each object covers; 0 in all patches for a missing object.
    """
    area = objects.sum(-1)
    means = jnp.einsum("op,p...->o...", objects, values, precision="highest")
    present = (area > 0).reshape(-1, *(1,) * (means.ndim - 1))
    means = means / jnp.where(present, area.reshape(present.shape), 1.0)
    signed = jnp.stack([means, -means], axis=-1)
    return jnp.where(present[..., None], signed, -jnp.inf).argmax(0)
