"""All measures of how the interaction of heads depends on the positions of queries and keys."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.rotary.chance import RotaryNull, rotary_null
from qkjax.interaction.rotary.distance import ByDistance, by_distance, cosine_by_offset
from qkjax.interaction.rotary.isotropy import Isotropy, isotropy
from qkjax.interaction.rotary.mean import coherence
from qkjax.interaction.rotary.place import PlaceShare, place_share
from qkjax.interaction.rotary.rotation import Rotation, grid_steps, pair_counts

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]


class PositionMeasures(NamedTuple):
    """How the interaction of each head depends on the positions of query and key.

    Attributes:
      grid: number of positions along each axis, such as (rows, columns).
      coherence: c of each plane; see `qkjax.interaction.rotary.mean`.
      step: angle in radians by which one step along each axis rotates each plane.
      share: the share of the interaction that depends on position.
      cosine: weighted cosine of M(delta) for every offset, as `cosine_by_offset` returns it.
      curve: mean of `cosine` at each distance.
      direction: how `cosine` varies with direction.
      null: values expected by chance for random kernels with the same rotation.
    """

    grid: tuple[int, ...]
    coherence: Float[np.ndarray, "planes"]
    step: Float[np.ndarray, "axes planes"]
    share: PlaceShare
    cosine: Float[np.ndarray, "layers heads *offset_grid"]
    curve: ByDistance
    direction: Isotropy
    null: RotaryNull


def measure_positions(query: Kernel, key: Kernel, rotation: Rotation) -> PositionMeasures:
    """Computes all measures of how the interaction of each head depends on positions.

    Args:
      query, key: kernels before the rotation, in the frame of M.
      rotation: the rotation of a grid of positions.

    Raises:
      QkjaxError: the grid has a single position or several windows, the heads rotate by different angles, or the angles
        are not linear in the coordinates.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.rotary.rotation import axial_angles
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4)).astype(np.float32)
      >>> angles = axial_angles(np.arange(3), np.arange(4), np.array([0.5]))
      >>> measures = measure_positions(query, key, Rotation(angles, "half", (3, 4)))
      >>> measures.cosine.shape, measures.curve.distance.tolist()
      ((1, 3, 5, 7), [0, 1, 2, 3, 4])
    """
    angles, pairs, grid = np.asarray(rotation.angles, np.float64), rotation.pairs, rotation.grid
    if rotation.window is not None:
        raise QkjaxError(
            f"the grid {grid} has several windows, so that layers attend to different places: pass the grid of one "
            f"window, {rotation.window}"
        )
    if np.prod(grid) < 2:
        raise QkjaxError(f"the grid {grid} has a single position: expected at least two; pass a larger grid")
    _, embed, heads, _ = query.shape
    null = rotary_null(embed, heads, angles, grid)
    share = PlaceShare(*map(np.asarray, place_share(query, key, angles, grid, pairs)))
    cosine = cosine_by_offset(query, key, angles, grid, pairs)
    curve = by_distance(cosine, pair_counts(grid))
    step = grid_steps(angles, grid)
    return PositionMeasures(grid, np.asarray(coherence(angles)), step, share, cosine, curve, isotropy(cosine), null)
