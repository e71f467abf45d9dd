"""Singular value decomposition of many small matrices at once, by one-sided Jacobi rotations.

All pairs of columns of all matrices are rotated together, half of a matrix's columns with the other half, as in a
tournament where all meet all: a few large element-wise operations a step, where libraries take matrix after matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkjax.interaction.svd.cholesky_qr import EPS, scaled

CLOSE = 1e-4
"""Cosine of two columns below which a round needs none after it: convergence is quadratic, so that it leaves 1e-8."""
ROUNDS = 24
"""Most rounds of all pairs; well conditioned matrices take one, others up to eight."""


def jacobi_svd(
    matrix: Float[Array, "*batch rank rank"],
) -> tuple[Float[Array, "*batch rank rank"], Float[Array, "*batch rank"], Float[Array, "*batch rank rank"]]:
    """M = U diag(s) V^T, as `jnp.linalg.svd`: U, s in descending order, V^T.

    Columns of M are rotated in pairs until all are orthogonal: M V = U diag(s) (Hestenes 1958; the order of pairs is
    Brent and Luk's, 1985). They begin as M V0 with V0 the eigenvectors of M^T M, which libraries find fast for many
    matrices at once: these are right but for modes that squaring has buried, s under about 3e-4 of the largest, and the
    rotations mend those. A noise of a thousandth of float32's rounding gives columns of zeros a direction.
    """
    dot = partial(jnp.matmul, precision="highest")
    *batch, rank, _ = matrix.shape
    count = rank + rank % 2  # an odd one out is paired with zeros
    unit, size = scaled(matrix)
    _, start = jnp.linalg.eigh(dot(jnp.swapaxes(unit, -1, -2), unit), symmetrize_input=False)
    turned = jnp.swapaxes(start, -1, -2)  # a row for each column of V
    # Added here and not to M, in whose large entries it would be lost: columns that are alike would leave zeros.
    noise = jax.random.normal(jax.random.key(1), (rank, rank), matrix.dtype) * (1e-3 * EPS / rank)
    columns = dot(turned, jnp.swapaxes(unit, -1, -2)) + noise.reshape((1,) * len(batch) + noise.shape)
    both = jnp.concatenate([columns, turned], axis=-1)  # V is turned with M V
    both = jnp.pad(both, [(0, 0)] * len(batch) + [(0, count - rank), (0, 0)])
    both = _orthogonal(both, rank)
    # Hundreds of rotations let lengths drift a little, of a column of M V and of V alike.
    drift = jnp.sqrt((both[..., rank:] ** 2).sum(-1, keepdims=True))
    both = both / jnp.where(drift == 0, 1, drift)
    lengths = jnp.where(drift[..., 0] == 0, -1, jnp.sqrt((both[..., :rank] ** 2).sum(-1)))  # the one added comes last
    order = jnp.argsort(-lengths, axis=-1)[..., :rank]
    both = jnp.take_along_axis(both, order[..., None], axis=-2)
    lengths = jnp.take_along_axis(lengths, order, axis=-1)
    left = jnp.swapaxes(both[..., :rank] / lengths[..., None], -1, -2)
    return left, lengths * size[..., 0], both[..., rank:]


def _orthogonal(both: Float[Array, "*batch count width"], rank: int) -> Float[Array, "*batch count width"]:
    """Rows rotated in pairs until their first `rank` entries are orthogonal."""
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
    """The next pairing: the first stays, all others move on by a place, round the table."""
    if top.shape[-2] == 1:
        return top, bottom
    moved = jnp.concatenate([top[..., :1, :], bottom[..., :1, :], top[..., 1:-1, :]], axis=-2)
    return moved, jnp.concatenate([bottom[..., 1:, :], top[..., -1:, :]], axis=-2)
