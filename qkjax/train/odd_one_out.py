"""Generated odd-one-out images: identical bars on a grid, one of which may differ. The task is to find the odd bar.

As in psychophysical search displays (and the paper's figure 2), a bar is odd only in comparison with the others, since
their colour and orientation are random in every image. One patch alone does not contain the answer.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

CELLS = 4
"""Rows and columns of the grid."""
CELL = 8
"""Side of a cell in pixels; the bar is shifted in it by up to one pixel in each direction."""
CLASSES = CELLS * CELLS + 1
"""Class 0: no odd bar. Class 1 + cell, with cells counted row by row: the odd bar is in this cell."""
HALF_LENGTH, HALF_WIDTH, GRAY = 2.5, 0.75, 0.5

Image = Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class OddOneOut:
    """A set of odd-one-out images, each generated on access from the seed and its index alone.

    Attributes:
      count: number of images; every second one has an odd bar.
      seed, part: the random seed and the part of the data set; parts with the same seed share no images.
    """

    count: int
    seed: int
    part: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """An image in -1..1 and its class."""
        return odd_one_out(np.random.default_rng([self.seed, self.part, index]), odd=index % 2 == 1)

    @property
    def largest_class(self) -> float:
        """Share of the images without an odd bar, the most frequent class."""
        return (self.count + 1) // 2 / self.count


def odd_one_out(rng: np.random.Generator, odd: bool) -> tuple[Image, int]:
    """Draws one image, with or without an odd bar.

    The odd bar differs from the others in hue, by 1/12 of the circle or more, or in orientation, by 15 degrees or more,
    but not in both.

    Returns:
      The image (32, 32, 3) in -1..1, and its class.
    """
    hue = np.full(CELLS * CELLS, rng.random())
    angle = np.full(CELLS * CELLS, rng.random() * np.pi)
    where = int(rng.integers(CELLS * CELLS))
    if odd and rng.random() < 0.5:
        hue[where] += rng.uniform(1 / 12, 11 / 12)
    elif odd:
        angle[where] += rng.uniform(np.pi / 12, 11 * np.pi / 12)
    return _draw(hue, angle, rng.uniform(-1, 1, (2, CELLS * CELLS))), 1 + where if odd else 0


def _draw(
    hue: Float[np.ndarray, "cells"], angle: Float[np.ndarray, "cells"], shift: Float[np.ndarray, "2 cells"]
) -> Image:
    """Draws one bar with soft edges per cell, on gray; `shift` is (down, right) in pixels."""
    middle = np.arange(CELL) + 0.5 - CELL / 2
    down, right = middle[None, :, None] - shift[0, :, None, None], middle[None, None, :] - shift[1, :, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along, across = abs(right * cos + down * sin), abs(down * cos - right * sin)
    cover = np.clip(HALF_LENGTH + 0.5 - along, 0, 1) * np.clip(HALF_WIDTH + 0.5 - across, 0, 1)
    colour = np.array([colorsys.hsv_to_rgb(h % 1, 0.9, 0.9) for h in hue])
    cells = GRAY + cover[..., None] * (colour[:, None, None] - GRAY)
    side = CELLS * CELL
    image = cells.reshape(CELLS, CELLS, CELL, CELL, 3).swapaxes(1, 2).reshape(side, side, 3)
    return (2 * image - 1).astype(np.float32)
