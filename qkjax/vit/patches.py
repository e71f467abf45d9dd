"""Places on the patch grid."""

import numpy as np
from jaxtyping import Int

from qkjax.errors import QkjaxError


def query_places(grid: tuple[int, int], count: int) -> Int[np.ndarray, "queries"]:
    """About so many places of patches, by rows, spread evenly over the grid in both directions; all of them where they
    are fewer.

    Raises:
      QkjaxError: less than one.
    """
    if count < 1:
        raise QkjaxError(f"queries={count}: expected a whole number from 1 up")
    rows, columns = grid
    if count >= rows * columns:
        return np.arange(rows * columns)
    # As many rows as columns in proportion, each in the middle of its share of the grid.
    down = min(rows, max(1, round(np.sqrt(count * rows / columns))))
    across = min(columns, -(-count // down))
    at = [((np.arange(n) + 0.5) * length / n).astype(int) for n, length in ((down, rows), (across, columns))]
    return (at[0][:, None] * columns + at[1][None]).ravel()
