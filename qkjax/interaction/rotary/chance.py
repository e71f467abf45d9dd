"""Values of the rotary measures that are expected by chance: heads with random kernels and the same rotation.

The kernels have independent Gaussian entries, as in `qkjax.interaction.null`. Wq R(delta) then has the distribution of
Wq, so M(delta) has the distribution of M(0) = Wq Wk^T at every offset. The interval of the weighted cosine at a single
offset is therefore the interval of `null_band`, for every rotation. Other values follow from

    E <C_a, C_b> = E <S_a, S_b> = 2 D^2 if a = b, else 0          (unit variance of all entries)
    E tr C_a tr C_b = E tr S_a tr S_b = 2 D if a = b, else 0

The share that depends on position is compared with the ratio of the two expected squared norms, 1 - mean_a c_a^2.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError
from qkjax.interaction.null import HEADS, LAYERS, LEVEL, null_band
from qkjax.interaction.rotary.distance import by_distance, offset_angles
from qkjax.interaction.rotary.isotropy import isotropy
from qkjax.interaction.rotary.place import axis_covariances, covariances, place_share
from qkjax.interaction.rotary.rotation import offsets, pair_counts
from qkjax.interaction.svd.lapack import cpu_device

Angles = Float[np.ndarray, "places planes"]
SAMPLES = 2000  # number of maps of random heads from which the intervals of isotropy are computed


class RotaryNull(NamedTuple):
    """Values expected by chance for the measures of `place`, `distance` and `isotropy`. Intervals contain 95%.

    Attributes:
      share, contribution, within_plane, axis: the values of `PlaceShare` at the expected squared norms (exact).
      share_head, share_layer: half widths of the intervals about `share` for one head, and for the mean over the heads
        of a layer (simulated).
      cosine_head, cosine_layer: half widths of the intervals about 0 for the weighted cosine at any single offset, for
        one head and for the mean over the heads of a layer. The widths are those of `null_band`.
      curve_head, curve_layer: the same for the means of `by_distance`, at each distance.
      isotropic, odd: means and upper ends of the one-sided intervals of `Isotropy`, for one head. NaN if no plane
        rotates.
      along, ahead: half widths of the intervals about 0 of `Isotropy`, for one head.
    """

    share: float
    contribution: Float[np.ndarray, "planes"]
    within_plane: Float[np.ndarray, "planes"]
    axis: Float[np.ndarray, "axes"]
    share_head: float
    share_layer: float
    cosine_head: float
    cosine_layer: float
    curve_head: Float[np.ndarray, "distances"]
    curve_layer: Float[np.ndarray, "distances"]
    isotropic: tuple[float, float]
    odd: tuple[float, float]
    along: Float[np.ndarray, "axes"]
    ahead: Float[np.ndarray, "axes"]


def curve_factor(angles: Angles, grid: tuple[int, ...]) -> Float[np.ndarray, "distances"]:
    """Standard deviation of a mean of `by_distance`, divided by that of a single offset, for random kernels.

    The nuclear norm of M(delta) varies little between random kernels. With a constant nuclear norm, the covariance of
    the weighted cosines at two offsets is proportional to sum_a cos(theta_a(delta) - theta_a(delta')), and the variance
    of a mean with weights w is proportional to sum_a |sum_delta w exp(i theta_a(delta))|^2. (For D = 48 and d = 12, the
    standard deviations of 4,000 simulated heads agree with this formula to within 4%.)
    """
    phases = np.exp(1j * offset_angles(angles, grid))
    maps = phases.T.reshape(1, phases.shape[1], *offsets(grid).shape[:-1])
    means = [by_distance(part, pair_counts(grid)).value[0] for part in (maps.real, maps.imag)]
    return np.sqrt((means[0] ** 2 + means[1] ** 2).mean(0))


def _half_width(values: np.ndarray, centre: np.ndarray | float = 0.0):
    return np.quantile(np.abs(values - centre), LEVEL, axis=0)


def _share_widths(embed: int, heads: int, angles: Angles, grid: tuple[int, ...], centre: float) -> tuple[float, float]:
    shape = (1, embed, HEADS, 2 * angles.shape[-1])
    with jax.default_device(cpu_device()):  # on any machine, the values are those of a CPU
        query, key = (jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(0), 2))
        share = np.asarray(place_share(query, key, angles, grid).share[0], np.float64)
    sampled = np.random.default_rng(0).integers(HEADS, size=(LAYERS, heads))
    return float(_half_width(share, centre)), float(_half_width(share[sampled].mean(-1), centre))


def random_maps(angles: Angles, grid: tuple[int, ...], samples: int) -> Float[np.ndarray, "samples *offset_grid"]:
    """Weighted cosines of random heads at all offsets, with variance 1, for a constant nuclear norm."""
    series = offset_angles(angles, grid)
    planes = series.shape[1]
    coefficients = np.random.default_rng(0).standard_normal((samples, 2 * planes)) / np.sqrt(planes)
    maps = coefficients @ np.concatenate([np.cos(series), np.sin(series)], axis=1).T
    return maps.reshape(samples, *offsets(grid).shape[:-1])


def rotary_null(embed: int, heads: int, angles: Angles, grid: tuple[int, ...]) -> RotaryNull:
    """Computes the values expected by chance for heads of width `embed` that rotate by the given angles.

    The seeds are fixed, so the same shapes and angles always give the same intervals. Simulated widths are accurate to
    about 5% for a single head and a layer's cosine, and to about 10% for `share_head` and `share_layer`, which come
    from 256 heads.

    Args:
      embed: D.
      heads: number of heads per layer.
      angles: angles of all positions in the grid, in row-major order. If heads rotate by different angles, call the
        function for each.
      grid: number of positions along each axis.

    Raises:
      QkjaxError: the angles are not those of one head.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.rotary.rotation import axial_angles
      >>> null = rotary_null(24, 2, axial_angles(np.arange(4), np.arange(4), np.array([1.5, 0.1])), (4, 4))
      >>> round(null.share, 2), bool(null.share_layer < null.share_head)
      (0.51, True)
    """
    if np.ndim(angles) != 2:
        raise QkjaxError(f"angles has shape {np.shape(angles)}: expected (positions, planes), the angles of one head")
    planes = angles.shape[1]
    variance = np.diagonal(covariances(angles), axis1=-2, axis2=-1).sum(0)
    axis = np.diagonal(axis_covariances(angles, grid), axis1=-2, axis2=-1).sum((1, 2)) / planes
    share = float(variance.mean())
    band = null_band(embed, heads, 2 * planes)
    factor = curve_factor(angles, grid)
    deviation = band.head_weighted_cosine / 1.96
    result = isotropy(deviation * random_maps(angles, grid, SAMPLES)[None])
    return RotaryNull(
        share,
        variance / planes,
        variance,
        axis,
        *_share_widths(embed, heads, np.asarray(angles), grid, share),
        band.head_weighted_cosine,
        band.weighted_cosine,
        band.head_weighted_cosine * factor,
        band.weighted_cosine * factor,
        (float(result.isotropic.mean()), float(np.quantile(result.isotropic, LEVEL))),
        (float(result.odd.mean()), float(np.quantile(result.odd, LEVEL))),
        _half_width(result.along[0]),
        _half_width(result.ahead[0]),
    )
