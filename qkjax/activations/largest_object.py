"""The query or key object of a mode in an image: the one with the largest mean projection."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chosen_objects(
    values: Float[Array, "patches *modes"], objects: Float[Array, "objects patches"]
) -> Int[Array, "*modes 2"]:
    """For each map, and for its negative (the mode's other sign), the object with the largest projection per area.

    Args:
      values: query or key maps over the patches.
      objects: the share of each patch that each object is; 0 throughout for missing objects.
    """
    area = objects.sum(-1)
    means = jnp.einsum("op,p...->o...", objects, values, precision="highest")
    there = (area > 0).reshape(-1, *(1,) * (means.ndim - 1))
    means = means / jnp.where(there, area.reshape(there.shape), 1.0)
    signed = jnp.stack([means, -means], axis=-1)
    return jnp.where(there[..., None], signed, -jnp.inf).argmax(0)
