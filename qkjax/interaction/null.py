"""What chance gives: cosines of random directions, and of heads with random kernels."""

from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import betaincinv

from qkjax.interaction.modes import decompose

LEVEL = 0.95
HEADS = 256  # random heads that are decomposed
LAYERS = 20_000  # layers of such heads that are sampled


class Null(NamedTuple):
    """Half widths of 95% intervals under chance, which are symmetric about 0.

    Attributes:
      cosine: interval of the cosine of two independent directions, uniform on the sphere (exact).
      mean_cosine: interval of the mean cosine over the modes and heads of a layer with random kernels.
      weighted_cosine: interval of the weighted mean cosine of such a layer. (Random kernels have a flat spectrum.
        If few modes are strong, the interval is wider, about as 1 / sqrt of the effective rank.)
      head_weighted_cosine: interval of the weighted mean cosine of one such head.
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
    """The intervals under chance for heads of the given shapes, simulated with independent Gaussian kernels.

    256 random heads are decomposed, and 20,000 layers of `heads` of these heads are sampled. The seed is fixed, so
    the same shapes always give the same intervals. The simulation determines the widths to about 5%.
    """
    keys = jax.random.split(jax.random.key(0), 2)
    modes = decompose(*(jax.random.normal(k, (1, embed, HEADS, head_dim)) for k in keys))
    cosine = np.asarray((modes.u * modes.v).sum(axis=2)[0], np.float64)
    s = np.asarray(modes.s[0], np.float64)
    weighted = (s * cosine).sum(-1) / s.sum(-1)
    sampled = np.random.default_rng(0).integers(HEADS, size=(LAYERS, heads))

    def half_width(head_values: np.ndarray) -> float:
        return float(np.quantile(np.abs(head_values[sampled].mean(-1)), LEVEL))

    head = float(np.quantile(np.abs(weighted), LEVEL))
    return Null(cosine_quantile(embed), half_width(cosine.mean(-1)), half_width(weighted), head)
