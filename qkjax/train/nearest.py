"""Where a constrained layer starts from when it starts from given kernels: the nearest M that it can have.

Nearest in the Frobenius norm, head by head, in float64 with numpy: it is done once. The symmetric and
the antisymmetric part of M live in the span of [Wq, Wk], so that matrices of 2d x 2d suffice.
Letters: D embed, H heads, d head_dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError
from qkjax.train.constraints import constraint, coordinates, rank, target

Kernel = Float[np.ndarray, "embed heads head_dim"]
Head = Float[np.ndarray, "embed head_dim"]
Parameters = dict[str, np.ndarray]
DEAD = 1e-5
"""Share of M below which what is near it is taken for nothing."""


def _in_span(query: Head, key: Head) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis P (D, 2d) of the span of both kernels, and P^T M P."""
    basis, _ = np.linalg.qr(np.concatenate([query, key], axis=1))
    return basis, (basis.T @ query) @ (basis.T @ key).T


def _symmetric_part(query: Head, key: Head) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of (M + M^T) / 2 and their vectors (D, 2d); the other eigenvalues are 0."""
    basis, small = _in_span(query, key)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    return values, basis @ vectors


def _definite(query: Head, key: Head, sign: int) -> Parameters:
    """The d eigenvalues of one sign that are largest; where there are fewer, columns of 0 for the rest."""
    values, vectors = _symmetric_part(query, key)
    best = np.argsort(-sign * values)[: query.shape[1]]
    return {"query": vectors[:, best] * np.sqrt(np.maximum(sign * values[best], 0))}


def _symmetric(query: Head, key: Head) -> Parameters:
    values, vectors = _symmetric_part(query, key)
    best = np.argsort(-abs(values))[: query.shape[1]]
    return {"query": vectors[:, best] * np.sqrt(abs(values[best])), "mix": np.diag(np.sign(values[best]))}


def _antisymmetric(query: Head, key: Head) -> Parameters:
    """The d // 2 strongest planes of K = (M - M^T) / 2. iK is Hermitian; z = (a + ib) / sqrt(2) of a positive
    eigenvalue w has K a = w b, K b = -w a: the plane's part of K is w (b a^T - a b^T)."""
    basis, small = _in_span(query, key)
    values, vectors = np.linalg.eigh(1j * (small - small.T) / 2)
    head_dim = query.shape[1]
    best = np.argsort(-values)[: head_dim // 2]
    strength = np.sqrt(np.maximum(values[best], 0))
    planes = np.sqrt(2) * basis @ vectors[:, best] * strength
    kernel, mix = np.zeros((len(query), head_dim)), np.zeros((head_dim, head_dim))
    first = 2 * np.arange(len(best))
    kernel[:, first], kernel[:, first + 1] = planes.real, planes.imag
    mix[first, first + 1] = 2.0
    return {"query": kernel, "mix": mix}


def _svd(query: Head, key: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u (D, d), s, v (D, d) of M, from the factors."""
    (query_basis, query_core), (key_basis, key_core) = np.linalg.qr(query), np.linalg.qr(key)
    left, s, right = np.linalg.svd(query_core @ key_core.T)
    return query_basis @ left, s, key_basis @ right.T


def _low_rank(query: Head, key: Head, rank: int) -> Parameters:
    u, s, v = _svd(query, key)
    root = np.sqrt(s[:rank])
    return {"query": u[:, :rank] * root, "key": v[:, :rank] * root}


def _flat(query: Head, key: Head) -> Parameters:
    u, s, v = _svd(query, key)
    return {"query": u, "key": v, "strength": s.mean()}


def _orthogonal(query: Head, key: Head) -> Parameters:
    """Nearest with the queries' space as it is; which space to give up is a choice."""
    basis, _ = np.linalg.qr(query)
    return {"query": query, "key": key - basis @ (basis.T @ key)}


NEAREST: dict[str, Callable[[Head, Head], Parameters]] = {
    "free": lambda query, key: {"query": query, "key": key},
    "frozen": lambda query, key: {"query": query, "key": key},
    "tied": lambda query, key: _definite(query, key, 1),
    "repulsive": lambda query, key: _definite(query, key, -1),
    "symmetric": _symmetric,
    "antisymmetric": _antisymmetric,
    "orthogonal": _orthogonal,
    "flat": _flat,
}


def nearest_parameters(name: str, query: Kernel, key: Kernel) -> Parameters:
    """Parameters of a constraint whose M is, head by head, the nearest to that of given kernels.

    Where a head's nearest M is 0 (a repulsive one's that is tied), its factors would be 0 and stay so, since
    each is in the gradient of the other: they are as small as the constraint's own draw times 1e-3 instead.

    Args:
      name: of the constraint, as `constraint` takes it.

    Raises:
      QkjaxError: an unknown constraint.
    """
    constraint(name)
    name = "free" if target(name) is not None else name
    query, key = (np.asarray(x, np.float64) for x in (query, key))
    heads = [(query[:, h], key[:, h]) for h in range(query.shape[1])]
    if name in ("diagonal", "identity"):
        return _diagonal(query, key, one=name == "identity")
    if columns := rank(name):
        if columns > query.shape[2]:
            raise QkjaxError(f"{name} is more than the {query.shape[2]} columns of a head: choose a smaller rank")
        found = [_low_rank(*head, columns) for head in heads]
    else:
        found = [NEAREST[name](*head) for head in heads]
    axis = {"query": 1, "key": 1}
    parts = {part: np.stack([f[part] for f in found], axis.get(part, 0)).astype(np.float32) for part in found[0]}
    return _alive(name, parts, query, key)


def _alive(name: str, parts: Parameters, query: Kernel, key: Kernel) -> Parameters:
    """With heads that would be dead, since both their factors are 0, drawn anew and made small."""

    def strength(query, key) -> np.ndarray:
        grams = (np.einsum("dhk,dhm->hkm", x, x) for x in (np.asarray(query, np.float64), np.asarray(key, np.float64)))
        return np.sqrt(np.maximum(np.einsum("hkm,hkm->h", *grams), 0))

    made = constraint(name).kernels({part: jnp.asarray(x) for part, x in parts.items()}, query.shape)
    dead = strength(*made) <= DEAD * strength(query, key)
    drawn = constraint(name).init(jax.random.key(0), query.shape)
    small = {part: np.asarray(x) * (1 if part == "mix" else np.float32(1e-3)) for part, x in drawn.items()}
    where = {"query": dead[None, :, None], "key": dead[None, :, None], "mix": dead[:, None, None], "strength": dead}
    return {part: np.where(where[part], small[part], x) for part, x in parts.items()}


def _diagonal(query: Kernel, key: Kernel, one: bool) -> Parameters:
    """The entries of M on the diagonal that each head has: M_cc = Wq[c] . Wk[c]."""
    entries = np.einsum("dhk,dhk->dh", query, key)
    strength = np.einsum("dhk,dh->hk", coordinates(query.shape), entries)
    return {"strength": (strength.mean(-1) if one else strength).astype(np.float32)}
