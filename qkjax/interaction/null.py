"""Values expected by chance: cosines of random directions, and cosines of the modes of heads with random kernels."""

from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import betaincinv

from qkjax.interaction.modes import decompose
from qkjax.interaction.svd.lapack import cpu_device

LEVEL = 0.95
HEADS = 256  # number of random heads that are decomposed
LAYERS = 20_000  # number of layers that are sampled from these heads


class Null(NamedTuple):
    """Half widths of the intervals that contain 95% of values by chance; all intervals are symmetric about 0.

    Attributes:
      cosine: half width for the cosine of two independent directions that are uniform on the sphere (exact).
      mean_cosine: half width for the mean cosine over all modes and heads of a layer with random kernels.
      weighted_cosine: half width for the strength-weighted mean cosine, averaged over the heads of a layer with random
        kernels. (Random kernels have a flat spectrum. If only a few modes are strong, the interval is wider, roughly in
        proportion to 1 / sqrt of the effective rank.)
      head_weighted_cosine: half width for the strength-weighted mean cosine of one head with random kernels.
    """

    cosine: float
    mean_cosine: float
    weighted_cosine: float
    head_weighted_cosine: float


def cosine_quantile(embed: int, level: float = LEVEL) -> float:
    """Half width of the central interval of the cosine c of two random directions.

    The distribution is (c + 1) / 2 ~ Beta((D - 1) / 2, (D - 1) / 2), and the standard deviation of c is 1 / sqrt(D).
    """
    half = (embed - 1) / 2
    return float(2 * betaincinv(half, half, (1 + level) / 2) - 1)


def _in_planes(kernel: np.ndarray, coherence: tuple[float, ...]) -> np.ndarray:
    """W diag(sqrt c) in planes with c > 0; which columns form a plane does not matter for random kernels."""
    c = np.tile(np.asarray(coherence), 2)
    return kernel[..., c > 0] * np.sqrt(c[c > 0]).astype(kernel.dtype)


@lru_cache(maxsize=64)
def null_band(embed: int, heads: int, head_dim: int, coherence: tuple[float, ...] | None = None) -> Null:
    """Simulates the intervals expected by chance for heads of the given shapes, with independent Gaussian kernels.

    The function decomposes 256 random heads. From these heads, it samples 20,000 layers of `heads` heads each. The seed
    is fixed, so the same shapes always give the same intervals. The simulated widths are accurate to about 5%.

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
        cosine = np.asarray((modes.u * modes.v).sum(axis=2)[0], np.float64)
    s = np.asarray(modes.s[0], np.float64)
    weighted = (s * cosine).sum(-1) / s.sum(-1)
    sampled = np.random.default_rng(0).integers(HEADS, size=(LAYERS, heads))

    def half_width(head_values: np.ndarray) -> float:
        return float(np.quantile(np.abs(head_values[sampled].mean(-1)), LEVEL))

    head = float(np.quantile(np.abs(weighted), LEVEL))
    return Null(cosine_quantile(embed), half_width(cosine.mean(-1)), half_width(weighted), head)
