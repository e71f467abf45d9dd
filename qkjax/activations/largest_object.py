"""Which object of an image a mode looks at: the one with the largest mean projection."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chosen_objects(
    values: Float[Array, "patches *modes"], objects: Float[Array, "objects patches"]
) -> Int[Array, "*modes 2"]:
    """Of each map the object with the largest projection per area, and of its negative (the mode's other sign).

    Args:
      values: query or key maps over the patches.
      objects: the share of each patch that each object is; those that are not there are 0 throughout.
    """
    area = objects.sum(-1)
    means = jnp.einsum("op,p...->o...", objects, values, precision="highest")
    there = (area > 0).reshape(-1, *(1,) * (means.ndim - 1))
    means = means / jnp.where(there, area.reshape(there.shape), 1.0)
    signed = jnp.stack([means, -means], axis=-1)
    return jnp.where(there[..., None], signed, -jnp.inf).argmax(0)
