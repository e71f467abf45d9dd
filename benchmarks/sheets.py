"""How fast sheets of top images are drawn: one after another, and in processes.

    python benchmarks/sheets.py

Draws 72 sheets of 5 modes and 9 images, as `qkjax modes` does for a model of 12 layers and 6 heads, into a temporary
folder. Pictures are smooth noise of 224 x 224 pixels with maps of 16 x 16 patches.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from qkjax.figures import save_all
from qkjax.figures.sheets import SheetRow, Tile, top_images_sheet

SHEETS, MODES, IMAGES = 72, 5, 9


def rows() -> list[SheetRow]:
    """The rows of one sheet."""
    rng = np.random.default_rng(0)
    walks = rng.standard_normal((IMAGES, 224, 224, 3)).cumsum(1).cumsum(2)
    low, high = walks.min((1, 2), keepdims=True), walks.max((1, 2), keepdims=True)
    pictures = (255 * (walks - low) / (high - low)).astype(np.uint8)
    return [
        SheetRow(f"L0 H0 M{mode}\ncos 0.50\ns 10", [Tile(x, *rng.random((2, 16, 16)), "12.3") for x in pictures])
        for mode in range(MODES)
    ]


def seconds(workers: int | None) -> float:
    """Time to draw and save all sheets."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(Path(folder) / f"{place:02d}", ("a sheet", rows())) for place in range(SHEETS)]
        start = time.perf_counter()
        count = sum(1 for _ in save_all(jobs, len(jobs), top_images_sheet, (".png",), workers))
        assert count == SHEETS
        return time.perf_counter() - start


def main() -> None:
    print(f"{SHEETS} sheets in this process: {seconds(1):.1f} s")
    print(f"{SHEETS} sheets, one process per core: {seconds(None):.1f} s")


if __name__ == "__main__":
    main()
