"""Constraints that make M diagonal, so that a head compares single coordinates of the embedding."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qkjax.train.constraints.record import STRENGTH, Constraint, Head, Shape


def head_coordinates(head: int, embed: int, head_dim: int) -> np.ndarray:
    """The d coordinates of the embedding that a head compares.

    Coordinates are assigned consecutively from head to head. After the last coordinate, the assignment starts again at
    0.
    """
    return (head * head_dim + np.arange(head_dim)) % embed


def coordinates(shape: Shape) -> Float[np.ndarray, "embed heads head_dim"]:
    """The coordinates of each head, as one-hot columns of a kernel."""
    embed, heads, head_dim = shape
    chosen = np.stack([head_coordinates(head, embed, head_dim) for head in range(heads)])
    return np.moveaxis(np.eye(embed, dtype=np.float32)[chosen], 2, 0)


def _nearest_diagonal(head: Head) -> dict[str, np.ndarray]:
    """The diagonal entries of M at the head's coordinates: M_cc = Wq[c] . Wk[c]."""
    entries = np.einsum("dk,dk->d", head.query, head.key)
    return {"strength": entries[head_coordinates(head.index, *head.query.shape)]}


CONSTRAINTS = {
    "diagonal": Constraint(
        description="M is diagonal with d nonzero entries, each of which is a strength: every cosine is +1 or -1",
        parameters={"strength": STRENGTH},
        init=lambda key, shape: {"strength": jnp.ones(shape[1:])},
        kernels=lambda p, shape: (jnp.asarray(coordinates(shape)), coordinates(shape) * p["strength"][None]),
        nearest=_nearest_diagonal,
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
    "identity": Constraint(
        description="M is a multiple of the identity on d coordinates (one strength per head)",
        parameters={"strength": STRENGTH},
        init=lambda key, shape: {"strength": jnp.ones(shape[1])},
        kernels=lambda p, shape: (jnp.asarray(coordinates(shape)), coordinates(shape) * p["strength"][None, :, None]),
        nearest=lambda head: {"strength": _nearest_diagonal(head)["strength"].mean()},
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
}
