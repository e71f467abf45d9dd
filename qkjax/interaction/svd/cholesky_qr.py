"""Computes a thin QR with matrix products and Cholesky factors of small matrices, which are fast on accelerators.

Householder QR is sequential: GPU libraries process one head after the other, and TPUs have no library for Householder
reflections.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

EPS = float(np.finfo(np.float32).eps)
SHIFT = 10 * EPS
"""Multiple of the identity that is added to X^T X, relative to the trace of X^T X (Fukaya et al. 2020, "Shifted
Cholesky QR"). A pass with this shift never fails, and reduces a condition number k to about k sqrt(10 EPS rank) = k /
100."""
NEAR = 0.5
"""If X^T X is closer to the identity than this distance, one pass without a shift makes the columns orthonormal up to
EPS."""
PASSES = 8
"""Largest number of passes. Random matrices need two passes. A matrix with a condition number of 1e4 needs three
passes, and a matrix with a condition number of 1e7 needs five. In float32, a matrix with a larger condition number
cannot be distinguished from a rank-deficient matrix."""


def scaled(
    x: Float[Array, "*batch rows columns"],
) -> tuple[Float[Array, "*batch rows columns"], Float[Array, "*batch 1 1"]]:
    """Divides each matrix by its Frobenius norm (by 1 if the matrix is zero), and returns the quotient and the norm.

    The norm is computed without squares that could overflow.
    """
    largest = jnp.abs(x).max((-2, -1), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    size = jnp.sqrt((x**2).sum((-2, -1), keepdims=True))
    return x / jnp.where(size > 0, size, 1), size * largest


def cholesky_qr(
    x: Float[Array, "*batch embed columns"],
) -> tuple[Float[Array, "*batch embed rank"], Float[Array, "*batch rank columns"]]:
    """Factorises X = Q R. The columns of Q are orthonormal for any rank of X.

    If X has fewer rows than columns, Q = I and R = X. The error ||X - Q R|| is about EPS ||X||, as for Householder QR.
    Fixed noise of that size is added to X, so that the columns can be orthonormalised even if X is zero or
    rank-deficient. R is computed as Q^T X, which is upper triangular up to rounding. Q^T X is more accurate than the
    product of the triangles of all passes.
    """
    dot = partial(jnp.matmul, precision="highest")
    embed, rank = x.shape[-2:]
    if embed < rank:
        return jnp.broadcast_to(jnp.eye(embed, dtype=x.dtype), (*x.shape[:-1], embed)), x
    noise = jax.random.normal(jax.random.key(0), (embed, rank), x.dtype) * (EPS / np.sqrt(embed).astype(np.float32))
    q = scaled(x)[0] + noise.reshape((1,) * (x.ndim - 2) + noise.shape)
    identity = jnp.broadcast_to(jnp.eye(rank, dtype=x.dtype), (*x.shape[:-2], rank, rank))

    def one_pass(state):
        q, _, passes = state
        gram = dot(jnp.swapaxes(q, -1, -2), q)
        far = jnp.abs(gram - identity).max((-2, -1), keepdims=True) >= NEAR  # false for NaN, which no pass can repair
        shift = jnp.where(far, SHIFT * jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None], 0)
        lower = jnp.linalg.cholesky(gram + shift * identity, symmetrize_input=False)
        # On devices whose solvers work in blocks, inverting the small triangle and multiplying is faster than solving
        # for all of Q.
        inverse = jax.lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
        return dot(q, jnp.swapaxes(inverse, -1, -2)), far.any(), passes + 1

    def unfinished(state):
        return state[1] & (state[2] < PASSES)

    q, *_ = jax.lax.while_loop(unfinished, one_pass, (q, jnp.asarray(True), 0))
    return q, dot(jnp.swapaxes(q, -1, -2), x)
