"""Constraints on the symmetry of M = Wq Wk^T, which determines the cosines of the modes or their signs.

For every mode of an antisymmetric M, the cosine u . v is 0, because v = M^T u / s and u^T M u = 0. The nearest M is
computed from 2d x 2d matrices, because both the symmetric and the antisymmetric part of M act within the span of [Wq,
Wk].
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qkjax.train.constraints.record import KERNEL, MIX, QUERY, Constraint, Head, Kernel, Parameters, Shape, dot, xavier

QUERY_AND_MIX = {"query": KERNEL, "mix": MIX}


def _draw_query(key: Array, shape: Shape) -> dict[str, Array]:
    return {"query": xavier(key, shape)}


def _draw_mixed(key: Array, shape: Shape, mix: np.ndarray) -> dict[str, Array]:
    return {
        "query": xavier(key, shape),
        "mix": jnp.broadcast_to(jnp.asarray(mix, jnp.float32), (shape[1], *mix.shape)),
    }


def _mixed(parameters: Parameters, sign: int) -> tuple[Kernel, Kernel]:
    """Returns the kernels Wq and Wk. For sign 1, Wk = Wq (B + B^T) / 2; for sign -1, Wk = Wq (B - B^T) / 2."""
    query, mix = parameters["query"], parameters["mix"]
    return query, dot("dhk,hkm->dhm", query, (mix + sign * jnp.swapaxes(mix, 1, 2)) / 2)


def _alternating_signs(head_dim: int) -> np.ndarray:
    """A diagonal matrix of alternating signs, with which half of the modes start with cosine +1 and half with -1."""
    return np.diag(np.where(np.arange(head_dim) % 2, -1.0, 1.0))


def _quarter_turns(head_dim: int) -> np.ndarray:
    """A matrix B such that (B - B^T) / 2 rotates each pair of coordinates by 90 degrees.

    If d is odd, B sets the last coordinate to 0.
    """
    turn = np.zeros((head_dim, head_dim))
    first = np.arange(0, head_dim - 1, 2)
    turn[first, first + 1] = 2.0
    return turn


def _in_span(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis P (D, 2d) of the span of both kernels, and the small matrix P^T M P."""
    basis, _ = np.linalg.qr(np.concatenate([head.query, head.key], axis=1))
    return basis, (basis.T @ head.query) @ (basis.T @ head.key).T


def _symmetric_part(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """The 2d eigenvalues of (M + M^T) / 2 that can be nonzero, and their eigenvectors (D, 2d)."""
    basis, small = _in_span(head)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    return values, basis @ vectors


def _nearest_definite(head: Head, sign: int) -> dict[str, np.ndarray]:
    """The parameters of the nearest semidefinite M, computed from the d largest eigenvalues of the given sign.

    If fewer than d eigenvalues have this sign, the remaining columns are 0.
    """
    values, vectors = _symmetric_part(head)
    best = np.argsort(-sign * values)[: head.query.shape[1]]
    return {"query": vectors[:, best] * np.sqrt(np.maximum(sign * values[best], 0))}


def _nearest_symmetric(head: Head) -> dict[str, np.ndarray]:
    values, vectors = _symmetric_part(head)
    best = np.argsort(-abs(values))[: head.query.shape[1]]
    return {"query": vectors[:, best] * np.sqrt(abs(values[best])), "mix": np.diag(np.sign(values[best]))}


def _nearest_antisymmetric(head: Head) -> dict[str, np.ndarray]:
    """The parameters of the nearest antisymmetric M, computed from the d // 2 strongest planes of K = (M - M^T) / 2.

    The matrix iK is Hermitian. If z = (a + ib) / sqrt(2) is an eigenvector of iK with a positive eigenvalue w, then
    K a = w b and K b = -w a. The part of K in the plane of a and b is therefore w (b a^T - a b^T).
    """
    basis, small = _in_span(head)
    values, vectors = np.linalg.eigh(1j * (small - small.T) / 2)
    head_dim = head.query.shape[1]
    best = np.argsort(-values)[: head_dim // 2]
    strength = np.sqrt(np.maximum(values[best], 0))
    planes = np.sqrt(2) * basis @ vectors[:, best] * strength
    kernel, mix = np.zeros((len(head.query), head_dim)), np.zeros((head_dim, head_dim))
    first = 2 * np.arange(len(best))
    kernel[:, first], kernel[:, first + 1] = planes.real, planes.imag
    mix[first, first + 1] = 2.0
    return {"query": kernel, "mix": mix}


CONSTRAINTS = {
    "tied": Constraint(
        description="Wk = Wq: M is symmetric and positive semidefinite, every cosine is +1",
        parameters=QUERY,
        init=_draw_query,
        kernels=lambda p, shape: (p["query"], p["query"]),
        nearest=lambda head: _nearest_definite(head, 1),
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
    "repulsive": Constraint(
        description="Wk = -Wq: M is symmetric and negative semidefinite, every cosine is -1",
        parameters=QUERY,
        init=_draw_query,
        kernels=lambda p, shape: (p["query"], -p["query"]),
        nearest=lambda head: _nearest_definite(head, -1),
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
    "symmetric": Constraint(
        description="Wk = Wq S with S = S^T: M is symmetric, every cosine is +1 or -1",
        parameters=QUERY_AND_MIX,
        init=lambda key, shape: _draw_mixed(key, shape, _alternating_signs(shape[2])),
        kernels=lambda p, shape: _mixed(p, 1),
        nearest=_nearest_symmetric,
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
    "antisymmetric": Constraint(
        description="Wk = Wq A with A = -A^T: M = -M^T, every cosine is 0",
        parameters=QUERY_AND_MIX,
        init=lambda key, shape: _draw_mixed(key, shape, _quarter_turns(shape[2])),
        kernels=lambda p, shape: _mixed(p, -1),
        nearest=_nearest_antisymmetric,
        factored=False,
        trained=True,
        target=None,
        argument=None,
    ),
}
