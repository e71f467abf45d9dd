"""Values expected by chance: cosines of random directions, and cosines of the modes of heads with random kernels.

The chance of a head, given its own singular values or its own kernels, is in `qkjax.interaction.head_null`.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from qkjax.interaction.modes import decompose
from qkjax.interaction.svd.lapack import cpu_device

LEVEL = 0.95
HEADS = 256  # number of random heads that are decomposed


class Null(NamedTuple):
    """Half widths of the intervals that contain 95% of values by chance; all intervals are symmetric about 0.

    Attributes:
      cosine: half width for the cosine of two independent directions that are uniform on the sphere (exact).
      mean_cosine: half width for the mean cosine over all modes and heads of a layer with random kernels.
      weighted_cosine: half width for the strength-weighted mean cosine, averaged over the heads of a layer with random
        kernels. (Random kernels have a flat spectrum. If only a few modes are strong, the interval is wider; see
        `qkjax.interaction.head_null`.)
      head_weighted_cosine: half width for the strength-weighted mean cosine of one head with random kernels.
    """

    cosine: float
    mean_cosine: float
    weighted_cosine: float
    head_weighted_cosine: float


Numbers = int | float | Float[np.ndarray, "..."]


def cosine_quantile(embed: Numbers, level: float = LEVEL) -> float | Float[np.ndarray, "..."]:
    """Half width of the central interval of the cosine c of two random directions in D = `embed` dimensions.

    The distribution is (c + 1) / 2 ~ Beta((D - 1) / 2, (D - 1) / 2), and the standard deviation of c is 1 / sqrt(D).
    """
    half = (np.asarray(embed, np.float64) - 1) / 2
    width = 2 * betaincinv(half, half, (1 + level) / 2) - 1
    return float(width) if width.ndim == 0 else width


def weighted_width(
    s: Float[np.ndarray, "*heads rank"], embed: int
) -> tuple[Float[np.ndarray, "*heads"], Float[np.ndarray, "*heads"]]:
    """The weighted cosine of heads with given singular values, if query directions are independent of key directions.

    Both sets of directions are orthonormal and uniformly distributed. The variance of the weighted cosine is then
    exactly sum s^2 / (D (sum s)^2). Its distribution is close to that of the cosine of two random directions in
    n = D (sum s^2)^2 / sum s^4 dimensions, which has the same kurtosis as a sum of independent cosines: for one mode,
    this is exact, and for many modes, it is the normal distribution.

    Args:
      s: singular values of heads.
      embed: D.

    Returns:
      Variances, and numbers of dimensions n. They are NaN if all singular values are zero.

    Example:
      >>> variance, dimensions = weighted_width(np.array([1.0, 0.0]), 16)
      >>> float(variance) == 1 / 16, float(dimensions)
      (True, 16.0)
    """
    s = np.asarray(s, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = s / s.sum(-1, keepdims=True)
        squares = (share**2).sum(-1)
        return np.asarray(squares / embed), np.asarray(embed * squares**2 / (share**4).sum(-1))


def half_width(variance: Numbers, dimensions: Numbers) -> float | Float[np.ndarray, "..."]:
    """Half width of the 95% interval of a value that is distributed as a cosine in n dimensions, up to its scale."""
    return cosine_quantile(dimensions) * np.sqrt(np.asarray(variance) * dimensions)


def _in_planes(kernel: np.ndarray, coherence: tuple[float, ...]) -> np.ndarray:
    """W diag(sqrt c) in planes with c > 0; which columns form a plane does not matter for random kernels."""
    c = np.tile(np.asarray(coherence), 2)
    return kernel[..., c > 0] * np.sqrt(c[c > 0]).astype(kernel.dtype)


@lru_cache(maxsize=64)
def null_band(embed: int, heads: int, head_dim: int, coherence: tuple[float, ...] | None = None) -> Null:
    """Computes the intervals expected by chance for heads of the given shapes, with independent Gaussian kernels.

    The query directions of such a head are independent of its key directions, so `weighted_width` states the
    distribution of its weighted cosine, given its singular values. The function decomposes 256 random heads for typical
    singular values. The seed is fixed, so the same shapes always give the same intervals. The widths are accurate to
    about 2% (D of at least 12).

    Args:
      embed: D.
      heads: number of heads per layer.
      head_dim: d.
      coherence: c of each plane, for the mean over positions of random heads with rotary positions; see
        `qkjax.interaction.rotary.mean`. Planes with c = 0 have no modes.
    """
    with jax.default_device(cpu_device()):  # on any machine, the values are those of a CPU
        keys = jax.random.split(jax.random.key(0), 2)
        kernels = [np.asarray(jax.random.normal(key, (1, embed, HEADS, head_dim))) for key in keys]
        modes = decompose(*(kernels if coherence is None else (_in_planes(kernel, coherence) for kernel in kernels)))
        s = np.asarray(modes.s[0], np.float64)
    variance, dimensions = (float(values.mean()) for values in weighted_width(s, embed))
    plain, all_modes = 1 / (embed * s.shape[-1]), embed * s.shape[-1]
    return Null(
        cosine_quantile(embed),
        float(half_width(plain / heads, all_modes * heads)),
        float(half_width(variance / heads, dimensions * heads)),
        float(half_width(variance, dimensions)),
    )
