"""Thin QR by matrix products and Cholesky factors of small matrices: what accelerators are good at.

Householder's reflections come one after the other; libraries run them head by head on GPUs, and TPUs have none.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

EPS = float(np.finfo(np.float32).eps)
SHIFT = 10 * EPS
"""Of X^T X, relative to its trace (Fukaya et al. 2020, "Shifted Cholesky QR"). A pass that is shifted never fails, and
leaves of a condition number k about k sqrt(10 EPS rank) = k / 100."""
NEAR = 0.5
"""Distance of X^T X from the identity under which one pass without a shift makes the columns orthonormal, to EPS."""
PASSES = 8
"""Most of them. Random matrices take two, condition numbers of 1e4 three, and 1e7, all that float32 can tell from a
deficient rank, five."""


def scaled(
    x: Float[Array, "*batch rows columns"],
) -> tuple[Float[Array, "*batch rows columns"], Float[Array, "*batch 1 1"]]:
    """Each matrix over its Frobenius norm, and the norm; zeros over 1. No square overflows on the way."""
    largest = jnp.abs(x).max((-2, -1), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    size = jnp.sqrt((x**2).sum((-2, -1), keepdims=True))
    return x / jnp.where(size > 0, size, 1), size * largest


def cholesky_qr(
    x: Float[Array, "*batch embed columns"],
) -> tuple[Float[Array, "*batch embed rank"], Float[Array, "*batch rank columns"]]:
    """X = Q R with orthonormal columns in Q, whatever the rank of X. One that is not tall is its own R.

    ||X - Q R|| is about EPS ||X||, as Householder's. A fixed noise of that size lets a matrix of deficient rank, or of
    zeros, have columns that can be made orthonormal. R is Q^T X, which is nearer to X than the product of all passes'
    triangles: upper triangular up to rounding.
    """
    dot = partial(jnp.matmul, precision="highest")
    embed, rank = x.shape[-2:]
    if embed < rank:
        return jnp.broadcast_to(jnp.eye(embed, dtype=x.dtype), (*x.shape[:-1], embed)), x
    noise = jax.random.normal(jax.random.key(0), (embed, rank), x.dtype) * (EPS / np.sqrt(embed).astype(np.float32))
    q = scaled(x)[0] + noise.reshape((1,) * (x.ndim - 2) + noise.shape)
    identity = jnp.broadcast_to(jnp.eye(rank, dtype=x.dtype), (*x.shape[:-2], rank, rank))

    def another(state):
        q, _, passes = state
        gram = dot(jnp.swapaxes(q, -1, -2), q)
        far = jnp.abs(gram - identity).max((-2, -1), keepdims=True) >= NEAR  # false where it is NaN: no pass mends that
        shift = jnp.where(far, SHIFT * jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None], 0)
        lower = jnp.linalg.cholesky(gram + shift * identity, symmetrize_input=False)
        # The inverse of a small triangle, and a product: solving for all of Q at once is slow where it is in blocks.
        inverse = jax.lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
        return dot(q, jnp.swapaxes(inverse, -1, -2)), far.any(), passes + 1

    def unfinished(state):
        return state[1] & (state[2] < PASSES)

    q, *_ = jax.lax.while_loop(unfinished, another, (q, jnp.asarray(True), 0))
    return q, dot(jnp.swapaxes(q, -1, -2), x)
