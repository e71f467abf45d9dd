"""Generates odd-one-out images: identical bars on a grid, one of which may differ. The task is to find the odd bar.

As in psychophysical search displays (and the paper's figure 2), a bar is odd only in comparison with all other bars,
because the colour and the orientation of the bars are random in every image. A single patch does not contain the
answer.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

CELLS = 4
"""Number of rows of the grid, which equals its number of columns."""
CELL = 8
"""Side of a grid cell in pixels. In each cell, the bar is shifted by up to one pixel in each direction."""
CLASSES = CELLS * CELLS + 1
"""Number of classes. Class 0 means that there is no odd bar. Class 1 + n means that the odd bar is in cell n, where
cells are counted row by row."""
HALF_LENGTH, HALF_WIDTH, GRAY = 2.5, 0.75, 0.5

Image = Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class OddOneOut:
    """A set of odd-one-out images. Each image is generated when it is accessed, from the seed, the part and its index.

    Attributes:
      count: number of images; every second image has an odd bar.
      seed: seed of the random generator.
      part: index of the part of the data set. Two parts with the same seed have no images in common.
    """

    count: int
    seed: int
    part: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """The image with this index, with values from -1 to 1, and its class."""
        return odd_one_out(np.random.default_rng([self.seed, self.part, index]), odd=index % 2 == 1)

    @property
    def largest_class(self) -> float:
        """The share of images in the most frequent class, which is the class of images without an odd bar."""
        return (self.count + 1) // 2 / self.count


def odd_one_out(rng: np.random.Generator, odd: bool) -> tuple[Image, int]:
    """Draws one image, with or without an odd bar.

    The odd bar differs from all other bars either in hue, by at least 1/12 of the colour circle, or in orientation, by
    at least 15 degrees.

    Returns:
      The image (32, 32, 3) with values from -1 to 1, and its class.
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
    """Draws one bar with soft edges in each cell, on a grey background; `shift` is (down, right) in pixels."""
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
