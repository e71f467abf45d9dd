"""The query or key object of a mode in an image: the one with the largest mean projection."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chosen_objects(
    values: Float[Array, "patches *modes"], objects: Float[Array, "objects patches"]
) -> Int[Array, "*modes 2"]:
    """The object with the largest mean projection, for each map and for its negative (the other sign of the mode).

    Args:
      values: query or key maps over the patches.
      objects: share of each patch that each object covers; all 0 for a missing object.
    """
    area = objects.sum(-1)
    means = jnp.einsum("op,p...->o...", objects, values, precision="highest")
    present = (area > 0).reshape(-1, *(1,) * (means.ndim - 1))
    means = means / jnp.where(present, area.reshape(present.shape), 1.0)
    signed = jnp.stack([means, -means], axis=-1)
    return jnp.where(present[..., None], signed, -jnp.inf).argmax(0)
