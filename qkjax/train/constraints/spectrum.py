"""Constraints on the singular values, or on the subspaces of queries and keys."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.svd.thin_qr import thin_qr
from qkjax.train.constraints.record import (
    KERNEL,
    QUERY_AND_KEY,
    STRENGTH,
    Argument,
    Constraint,
    Head,
    Kernel,
    Parameters,
    Shape,
    dot,
    xavier_pair,
)


def _orthogonal(parameters: Parameters, _: Shape) -> tuple[Kernel, Kernel]:
    query, key = parameters["query"], parameters["key"]
    basis, _ = thin_qr(jnp.moveaxis(query, 1, 0))
    for _ in range(2):  # the second pass removes the rounding error of the first pass
        key = key - dot("hdm,hem,ehk->dhk", basis, basis, key)
    return query, key


def _nearest_orthogonal(head: Head) -> dict[str, np.ndarray]:
    """The nearest kernels for which the subspaces are orthogonal and the query kernel is unchanged.

    Changing the query kernel instead of the key kernel would be an equally good choice.
    """
    basis, _ = np.linalg.qr(head.query)
    return {"query": head.query, "key": head.key - basis @ (basis.T @ head.key)}


def _flat(parameters: Parameters, _: Shape) -> tuple[Kernel, Kernel]:
    # One stacked QR: two independent batched QRs in one program can deadlock XLA on CPUs with few cores.
    bases, cores = thin_qr(jnp.moveaxis(jnp.stack([parameters["query"], parameters["key"]]), 2, 1))
    # LAPACK chooses the signs of R. With a positive diagonal of R, Q equals the input if its columns are orthonormal.
    signs = jnp.where(jnp.diagonal(cores, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    query, key = jnp.moveaxis(bases * signs[..., None, :], 1, 2)
    return query, key * parameters["strength"][None, :, None]


def _svd(head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular value decomposition of M, computed from the kernels: u (D, d), s, and v (D, d)."""
    (query_basis, query_core), (key_basis, key_core) = np.linalg.qr(head.query), np.linalg.qr(head.key)
    left, s, right = np.linalg.svd(query_core @ key_core.T)
    return query_basis @ left, s, key_basis @ right.T


def _nearest_flat(head: Head) -> dict[str, np.ndarray]:
    u, s, v = _svd(head)
    return {"query": u, "key": v, "strength": s.mean()}


def _padded(kernel: Float[Array, "embed heads columns"], shape: Shape) -> Kernel:
    return jnp.pad(kernel, ((0, 0), (0, 0), (0, shape[2] - kernel.shape[2])))


def _nearest_low_rank(head: Head, rank: int) -> dict[str, np.ndarray]:
    u, s, v = _svd(head)
    root = np.sqrt(s[:rank])
    return {"query": u[:, :rank] * root, "key": v[:, :rank] * root}


CONSTRAINTS = {
    "orthogonal": Constraint(
        description="Wk is orthogonal to the span of Wq: every cosine is 0, and M is not antisymmetric",
        parameters=QUERY_AND_KEY,
        init=xavier_pair,
        kernels=_orthogonal,
        nearest=_nearest_orthogonal,
        factored=True,
        trained=True,
        target=None,
        argument=None,
    ),
    "flat": Constraint(
        description="Wq and Wk have orthonormal columns and a common strength: the d singular values are equal",
        parameters={"query": KERNEL, "key": KERNEL, "strength": STRENGTH},
        init=lambda key, shape: {**xavier_pair(key, shape), "strength": jnp.ones(shape[1])},
        kernels=_flat,
        nearest=_nearest_flat,
        factored=True,
        trained=True,
        target=None,
        argument=None,
    ),
    "low_rank": Constraint(
        description="only r columns of Wq and Wk are nonzero: M has rank r",
        parameters=QUERY_AND_KEY,
        init=xavier_pair,
        kernels=lambda p, shape, rank: (_padded(p["query"], shape), _padded(p["key"], shape)),
        nearest=_nearest_low_rank,
        factored=False,
        trained=True,
        target=None,
        argument=Argument(meaning="the rank of low_rank(r)", type=int, low=1, high=None, example=8),
    ),
}
