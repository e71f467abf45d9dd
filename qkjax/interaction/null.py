"""What chance gives: cosines of random directions, and of heads with random kernels."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from qkjax.interaction.svd.lapack import one_blas_thread

LEVEL = 0.95
HEADS = 256
LAYERS = 20_000


class Null(NamedTuple):
    """Half widths of the intervals, symmetric about 0, that hold 95% of what chance gives.

    Attributes:
      cosine: of two independent directions, uniform on the sphere (exact).
      mean_cosine: of the mean cosine over the modes and heads of a layer with random kernels.
      weighted_cosine: of the weighted mean cosine of such a layer. (Random kernels have a flat
        spectrum; few strong modes widen the interval, about as 1 / sqrt of the effective rank.)
      head_weighted_cosine: of the weighted mean cosine of one such head.
    """

    cosine: float
    mean_cosine: float
    weighted_cosine: float
    head_weighted_cosine: float


def cosine_quantile(embed: int, level: float = LEVEL) -> float:
    """Half width of the central interval of the cosine of two random directions.

    (c + 1) / 2 ~ Beta((D - 1) / 2, (D - 1) / 2); the standard deviation of c is 1 / sqrt(D).
    """
    half = (embed - 1) / 2
    return float(2 * betaincinv(half, half, (1 + level) / 2) - 1)


@lru_cache(maxsize=64)
def null_band(embed: int, heads: int, head_dim: int) -> Null:
    """The null for heads of given shapes; kernels with independent Gaussian entries, simulated.

    256 random heads are drawn, then layers of `heads` of them 20,000 times. The seed is fixed, so the same shapes
    always have the same band. Widths are known to about 5%.

    Example:
      >>> round(null_band(384, 6, 64).cosine, 3)
      0.1
    """
    s, cosine = _random_modes(np.random.default_rng(0), embed, head_dim)
    weighted = (s * cosine).sum(-1) / s.sum(-1)
    drawn = np.random.default_rng(0).integers(HEADS, size=(LAYERS, heads))

    def half_width(head_values: np.ndarray) -> float:
        return float(np.quantile(np.abs(head_values[drawn].mean(-1)), LEVEL))

    head = float(np.quantile(np.abs(weighted), LEVEL))
    return Null(cosine_quantile(embed), half_width(cosine.mean(-1)), half_width(weighted), head)


def _random_modes(
    rng: np.random.Generator, embed: int, head_dim: int
) -> tuple[Float[np.ndarray, "heads rank"], Float[np.ndarray, "heads rank"]]:
    """Singular values and cosines of random heads, without their kernels.

    With the thin QR of both kernels, M = Qq (Rq Rk^T) Qk^T and Rq Rk^T = A S B^T, the cosines are the diagonal of
    A^T (Qq^T Qk) B. Of a Gaussian matrix Q is uniform, and independent of R, so A and B do not change the distribution
    of Qq^T Qk: the corner of a uniform orthogonal matrix. It is that of X (X^T X + Y^T Y)^(-1/2), with X the first
    `rank` rows of a Gaussian matrix and Y the others.
    """
    rank = min(embed, head_dim)
    cores = _root(rng, embed, head_dim) @ np.swapaxes(_root(rng, embed, head_dim), -1, -2)
    corner, rest = rng.standard_normal((HEADS, rank, rank)), _root(rng, embed - rank, rank)
    gram = np.swapaxes(corner, -1, -2) @ corner + np.swapaxes(rest, -1, -2) @ rest
    with one_blas_thread():
        s = np.linalg.svd(cores, compute_uv=False)
        frames = np.linalg.solve(np.linalg.cholesky(gram), np.swapaxes(corner, -1, -2))
    return s, np.diagonal(frames, axis1=-2, axis2=-1)


def _root(rng: np.random.Generator, rows: int, columns: int) -> Float[np.ndarray, "heads least columns"]:
    """Matrices R with R^T R distributed as X^T X of Gaussian X (rows, columns): the triangles of their QR (Bartlett
    1933), or X itself where that is smaller."""
    if rows < columns:
        return rng.standard_normal((HEADS, rows, columns))
    triangles = np.triu(rng.standard_normal((HEADS, columns, columns)), 1)
    diagonal = np.arange(columns)
    triangles[:, diagonal, diagonal] = np.sqrt(rng.chisquare(rows - diagonal, (HEADS, columns)))
    return triangles
