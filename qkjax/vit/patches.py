"""Selects patches on the patch grid."""

import numpy as np
from jaxtyping import Int

from qkjax.errors import QkjaxError


def query_places(grid: tuple[int, int], count: int) -> Int[np.ndarray, "queries"]:
    """The indices of about `count` patches that are evenly spaced in both directions, row by row.

    If the grid has at most `count` patches, the function returns all patches.

    Raises:
      QkjaxError: `count` is less than 1.
    """
    if count < 1:
        raise QkjaxError(f"queries={count}: expected a whole number of at least 1")
    rows, columns = grid
    if count >= rows * columns:
        return np.arange(rows * columns)
    # The numbers of selected rows and columns are proportional to the grid. The grid is divided into equal intervals,
    # and the middle row or column of each interval is selected.
    down = min(rows, max(1, round(np.sqrt(count * rows / columns))))
    across = min(columns, -(-count // down))
    axes = [((np.arange(n) + 0.5) * length / n).astype(int) for n, length in ((down, rows), (across, columns))]
    return (axes[0][:, None] * columns + axes[1][None]).ravel()
