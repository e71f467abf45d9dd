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
from qkjax.interaction.null import HEADS, LEVEL, null_band
from qkjax.interaction.rotary.distance import by_distance, offset_angles
from qkjax.interaction.rotary.isotropy import isotropy
from qkjax.interaction.rotary.place import axis_covariances, covariances, place_share
from qkjax.interaction.rotary.rotation import offsets, pair_counts
from qkjax.interaction.svd.lapack import cpu_device

Angles = Float[np.ndarray, "places planes"]
LAYERS = 20_000  # number of layers that are sampled from random heads
SAMPLES = 2000  # number of maps of random heads from which the intervals of isotropy are computed


class Width(NamedTuple):
    """Half widths of the intervals that contain 95% of values by chance.

    Attributes:
      head: half width for one head.
      layer: half width for the mean over the heads of a layer.
    """

    head: float | Float[np.ndarray, "..."]
    layer: float | Float[np.ndarray, "..."]


class RotaryNull(NamedTuple):
    """Values expected by chance for the measures of `place`, `distance` and `isotropy`. Intervals contain 95%.

    Attributes:
      share, contribution, within_plane, axis: the values of `PlaceShare` at the expected squared norms (exact).
      share_width, contribution_width, within_plane_width, axis_width: widths of the intervals about these values
        (simulated).
      cosine_width: widths of the intervals about 0 for the weighted cosine at any single offset, from `null_band`.
      curve_width: the same for the means of `by_distance`, at each distance.
      isotropic, odd: means of `Isotropy` for one head. NaN if no plane rotates.
      isotropic_end, odd_end: upper ends of the one-sided intervals of `isotropic` and `odd`, for one head and for a
        layer.
      along_width, ahead_width: widths of the intervals about 0 of `Isotropy`, for each axis.
    """

    share: float
    share_width: Width
    contribution: Float[np.ndarray, "planes"]
    contribution_width: Width
    within_plane: Float[np.ndarray, "planes"]
    within_plane_width: Width
    axis: Float[np.ndarray, "axes"]
    axis_width: Width
    cosine_width: Width
    curve_width: Width
    isotropic: float
    isotropic_end: Width
    odd: float
    odd_end: Width
    along_width: Width
    ahead_width: Width


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


def _width(
    values: Float[np.ndarray, "samples ..."], heads: int, centre: np.ndarray | float = 0.0, sides: int = 2
) -> Width:
    """Half widths of intervals about a centre, or the upper ends of intervals if they have one side.

    `values` are those of single heads. The heads of a layer are sampled from them.
    """
    sampled = np.random.default_rng(0).integers(len(values), size=(LAYERS, heads))
    size = np.abs if sides == 2 else np.asarray
    columns = (values - centre).reshape(len(values), -1).T
    layer = np.array([np.quantile(size(column[sampled].mean(-1)), LEVEL) for column in columns])
    head = np.quantile(size(columns), LEVEL, axis=-1)
    return Width(float(head[0]), float(layer[0])) if values.ndim == 1 else Width(head, layer)


def _random_shares(embed: int, angles: Angles, grid: tuple[int, ...]) -> list[Float[np.ndarray, "heads ..."]]:
    """The fields of `PlaceShare` for random heads."""
    shape = (1, embed, HEADS, 2 * angles.shape[-1])
    with jax.default_device(cpu_device()):  # on any machine, the values are those of a CPU
        query, key = (jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(0), 2))
        return [np.asarray(field[0], np.float64) for field in place_share(query, key, angles, grid)]


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
    about 5% for a single head and a layer's cosine, and to about 10% for the widths of shares, which come from 256
    heads.

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
      >>> round(null.share, 2), bool(null.share_width.layer < null.share_width.head)
      (0.51, True)
    """
    if np.ndim(angles) != 2:
        raise QkjaxError(f"angles has shape {np.shape(angles)}: expected (positions, planes), the angles of one head")
    planes = angles.shape[1]
    variance = np.diagonal(covariances(angles), axis1=-2, axis2=-1).sum(0)
    axis = np.diagonal(axis_covariances(angles, grid), axis1=-2, axis2=-1).sum((1, 2)) / planes
    centres = {
        "share": float(variance.mean()),
        "contribution": variance / planes,
        "within_plane": variance,
        "axis": axis,
    }
    shares = zip(centres.items(), _random_shares(embed, np.asarray(angles), grid), strict=True)
    band = null_band(embed, heads, 2 * planes)
    factor = curve_factor(angles, grid)
    return RotaryNull(
        **centres,
        **{f"{name}_width": _width(values, heads, centre) for (name, centre), values in shares},
        cosine_width=Width(band.head_weighted_cosine, band.weighted_cosine),
        curve_width=Width(band.head_weighted_cosine * factor, band.weighted_cosine * factor),
        **_direction_null(band.head_weighted_cosine / 1.96, heads, angles, grid),
    )


def _direction_null(deviation: float, heads: int, angles: Angles, grid: tuple[int, ...]) -> dict[str, float | Width]:
    """The fields of `RotaryNull` that describe `Isotropy`, for a standard deviation of the cosine at one offset."""
    result = isotropy(deviation * random_maps(angles, grid, SAMPLES)[None])
    isotropic, odd, along, ahead = (field[0] for field in result)
    return {
        "isotropic": float(isotropic.mean()),
        "isotropic_end": _width(isotropic, heads, sides=1),
        "odd": float(odd.mean()),
        "odd_end": _width(odd, heads, sides=1),
        "along_width": _width(along, heads),
        "ahead_width": _width(ahead, heads),
    }
