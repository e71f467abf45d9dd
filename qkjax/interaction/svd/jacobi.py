"""Computes the singular value decompositions of many small matrices at once, with one-sided Jacobi rotations.

In each step, the columns of every matrix are rotated in pairs. As in a round-robin tournament, each column of one half
is paired with a column of the other half. A step consists of a few large element-wise operations on all matrices at
once, whereas libraries process one matrix after the other.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkjax.interaction.svd.cholesky_qr import EPS, scaled

CLOSE = 1e-4
"""If the largest cosine between two columns in a round was at most this value, no further round is needed. Convergence
is quadratic, so the cosines after that round are about 1e-8."""
ROUNDS = 24
"""Largest number of rounds. Each round rotates all pairs of columns once. Well-conditioned matrices need one round, and
ill-conditioned matrices up to eight."""


def jacobi_svd(
    matrix: Float[Array, "*batch rank rank"],
) -> tuple[Float[Array, "*batch rank rank"], Float[Array, "*batch rank"], Float[Array, "*batch rank rank"]]:
    """Factorises M = U diag(s) V^T and returns U, s in descending order, and V^T, as `jnp.linalg.svd` does.

    Columns of M are rotated in pairs until all columns are orthogonal: M V = U diag(s) (Hestenes 1958; the order of
    pairs is from Brent and Luk 1985). The rotations start from M V0, where the columns of V0 are the eigenvectors of
    M^T M, which libraries compute quickly for many matrices at once. V0 is inaccurate only for singular values below
    about 3e-4 times the largest, because M^T M squares all singular values. The rotations correct these inaccuracies.
    Noise of a thousandth of float32's rounding error is added, so that columns of zeros have a direction.
    """
    dot = partial(jnp.matmul, precision="highest")
    *batch, rank, _ = matrix.shape
    count = rank + rank % 2  # an odd number of columns is padded with a column of zeros
    unit, size = scaled(matrix)
    _, start = jnp.linalg.eigh(dot(jnp.swapaxes(unit, -1, -2), unit), symmetrize_input=False)
    turned = jnp.swapaxes(start, -1, -2)  # one row per column of V
    # The noise is not added to M itself, because rounding would remove the noise from M's large entries: identical
    # columns of M would still lead to columns of zeros.
    noise = jax.random.normal(jax.random.key(1), (rank, rank), matrix.dtype) * (1e-3 * EPS / rank)
    columns = dot(turned, jnp.swapaxes(unit, -1, -2)) + noise.reshape((1,) * len(batch) + noise.shape)
    both = jnp.concatenate([columns, turned], axis=-1)  # V is rotated together with M V
    both = jnp.pad(both, [(0, 0)] * len(batch) + [(0, count - rank), (0, 0)])
    both = _orthogonal(both, rank)
    # Hundreds of rotations change the lengths of columns slightly, by the same factor in M V and in V.
    drift = jnp.sqrt((both[..., rank:] ** 2).sum(-1, keepdims=True))
    both = both / jnp.where(drift == 0, 1, drift)
    lengths = jnp.where(
        drift[..., 0] == 0, -1, jnp.sqrt((both[..., :rank] ** 2).sum(-1))
    )  # the padded column comes last
    order = jnp.argsort(-lengths, axis=-1)[..., :rank]
    both = jnp.take_along_axis(both, order[..., None], axis=-2)
    lengths = jnp.take_along_axis(lengths, order, axis=-1)
    left = jnp.swapaxes(both[..., :rank] / lengths[..., None], -1, -2)
    return left, lengths * size[..., 0], both[..., rank:]


def _orthogonal(both: Float[Array, "*batch count width"], rank: int) -> Float[Array, "*batch count width"]:
    """Rotates the rows of each matrix in pairs until the vectors of the rows' first `rank` entries are orthogonal."""
    half = both.shape[-2] // 2

    def step(_, state):
        top, bottom, worst = state
        a, b = top[..., :rank], bottom[..., :rank]
        alpha, beta, gamma = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
        lengths = jnp.sqrt(alpha) * jnp.sqrt(beta)
        cosine = jnp.where(lengths > 0, jnp.abs(gamma) / jnp.where(lengths > 0, lengths, 1), 0)
        turn = cosine > EPS
        zeta = (beta - alpha) / jnp.where(turn, 2 * gamma, 1)
        # sign(zeta) / (|zeta| + sqrt(1 + zeta^2)), and 1 at zeta = 0
        tangent = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.hypot(1, zeta))
        tangent = jnp.where(turn, tangent, 0)[..., None]
        c = jax.lax.rsqrt(1 + tangent**2)
        top, bottom = c * (top - tangent * bottom), c * (bottom + tangent * top)
        return *_next(top, bottom), jnp.maximum(worst, cosine.max())

    def tournament(state):
        top, bottom, _, rounds = state
        top, bottom, worst = jax.lax.fori_loop(0, 2 * half - 1, step, (top, bottom, jnp.zeros((), both.dtype)))
        return top, bottom, worst, rounds + 1

    def unfinished(state):
        return (state[2] > CLOSE) & (state[3] < ROUNDS)

    start = (both[..., :half, :], both[..., half:, :], jnp.asarray(jnp.inf, both.dtype), 0)
    top, bottom, *_ = jax.lax.while_loop(unfinished, tournament, start)
    return jnp.concatenate([top, bottom], axis=-2)


def _next(top, bottom):
    """The next pairing of the round-robin tournament: the first row stays, and all other rows move by one place."""
    if top.shape[-2] == 1:
        return top, bottom
    moved = jnp.concatenate([top[..., :1, :], bottom[..., :1, :], top[..., 1:-1, :]], axis=-2)
    return moved, jnp.concatenate([bottom[..., 1:, :], top[..., -1:, :]], axis=-2)
