"""Selects patches on the patch grid."""

import numpy as np
from jaxtyping import Int

from qkjax.errors import QkjaxError


def query_places(grid: tuple[int, int], count: int) -> Int[np.ndarray, "queries"]:
    """Indices of about `count` patches, row by row, evenly spaced in both directions.

    If the grid has at most `count` patches, all patches are returned.

    Raises:
      QkjaxError: `count` is less than 1.
    """
    if count < 1:
        raise QkjaxError(f"queries={count}: expected a whole number of at least 1")
    rows, columns = grid
    if count >= rows * columns:
        return np.arange(rows * columns)
    # The numbers of selected rows and columns are in proportion to the grid. The grid is divided into equal intervals,
    # and the selected row or column is the middle of its interval.
    down = min(rows, max(1, round(np.sqrt(count * rows / columns))))
    across = min(columns, -(-count // down))
    axes = [((np.arange(n) + 0.5) * length / n).astype(int) for n, length in ((down, rows), (across, columns))]
    return (axes[0][:, None] * columns + axes[1][None]).ravel()
