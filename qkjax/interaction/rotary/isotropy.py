"""Whether grouping depends on distance alone, or also on the direction of an offset."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkjax.interaction.rotary.rotation import offsets

ROUNDING = 1e-12
"""A map is constant if its variation is smaller than this share of its sum of squares, about the square of the rounding
error of float32."""


class Isotropy(NamedTuple):
    """How a map of offsets varies with direction. The variation is the sum of squared deviations from the map's mean.

    All offsets have equal weight, except for offset 0, which has no direction and is left out. NaN if the map is
    constant.

    Attributes:
      isotropic: share of the variation that depends on the distance alone (distances are not rounded): 1 if the map
        is the same in all directions.
      odd: share of the variation that changes sign with the offset: above 0 if offsets to the left differ from offsets
        to the right, or offsets above from offsets below. This share comes from the sines of tr M(delta) and from the
        nuclear norms.
      along: mean value of offsets along each axis alone, such as (rows, columns): queries and keys in the same column,
        and in the same row. Only offsets up to the length of the shortest axis count.
      ahead: mean value of all offsets with a positive coordinate on each axis minus the mean of those with a negative
        coordinate. For axes (rows, columns), this is the mean for queries below the key minus the mean for queries
        above it, and the mean for queries to the right of the key minus the mean for queries to its left.
    """

    isotropic: Float[np.ndarray, "layers heads"]
    odd: Float[np.ndarray, "layers heads"]
    along: Float[np.ndarray, "layers heads axes"]
    ahead: Float[np.ndarray, "layers heads axes"]


def isotropy(values: Float[np.ndarray, "layers heads *offset_grid"]) -> Isotropy:
    """Computes how maps of offsets vary with direction.

    Args:
      values: maps of offsets, from `cosine_by_offset`.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.rotary.rotation import offsets
      >>> length, right = np.linalg.norm(offsets((3, 3)), axis=-1), offsets((3, 3))[..., 1].astype(float)
      >>> result = isotropy(np.stack([length, right])[None])
      >>> result.isotropic.round(3).tolist(), result.odd.round(3).tolist(), result.ahead[0, 1].tolist()
      ([[1.0, 0.0]], [[0.0, 1.0]], [0.0, 3.0])
    """
    shape = values.shape[2:]
    grid = tuple((n + 1) // 2 for n in shape)
    places = offsets(grid).reshape(-1, len(grid))
    flat = np.asarray(values, np.float64).reshape(*values.shape[:2], -1)
    square = (places**2).sum(-1)
    moved = square > 0
    flat, places, square = flat[..., moved], places[moved], square[moved]
    centred = flat - flat.mean(-1, keepdims=True)
    classes = np.unique(square, return_inverse=True)[1]
    member = (classes[None] == np.arange(classes.max() + 1)[:, None]).astype(float)
    means = centred @ (member / member.sum(1, keepdims=True)).T
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = (centred**2).sum(-1)
        constant = variation <= ROUNDING * (flat**2).sum(-1)
        variation = np.where(constant, np.nan, variation)
        isotropic = (means**2 * member.sum(1)).sum(-1) / variation
        odd = (((centred - centred[..., ::-1]) / 2) ** 2).sum(-1) / variation
    reach = min(n for n in grid if n > 1)
    lines = [(np.delete(places, g, 1) == 0).all(1) & (np.abs(places[:, g]) < reach) for g in range(len(grid))]
    along = [flat[..., line].mean(-1) if line.any() else np.full(flat.shape[:2], np.nan) for line in lines]
    sides = [np.sign(places[:, g]) for g in range(len(grid))]
    ahead = [(flat * side).sum(-1) / max((side > 0).sum(), 1) for side in sides]
    return Isotropy(isotropic, odd, np.stack(along, -1), np.stack(ahead, -1))
