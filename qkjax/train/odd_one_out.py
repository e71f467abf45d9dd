"""Generated odd-one-out images: bars on a grid, all alike but for one, or all alike. Is there one, and where?

In the manner of psychophysical search displays (and of the paper's figure 2): what is odd about a bar shows
only beside the others, since colour and orientation of the many are drawn anew for every image. A token that
sees its own patch alone cannot tell; the answer needs context.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

CELLS = 4
"""Rows and columns of the grid."""
CELL = 8
"""Pixels of a side of a cell, in which a bar is moved about by up to a pixel either way."""
CLASSES = CELLS * CELLS + 1
"""0: all alike; 1 + cell, by rows: where the odd one is."""
HALF_LENGTH, HALF_WIDTH, GRAY = 2.5, 0.75, 0.5

Image = Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class OddOneOut:
    """A set of such images, each made when it is asked for, from the seed and its number alone.

    Attributes:
      count: images in the set; every other one has an odd bar.
      seed, part: of the set; parts of one seed have no image in common.
    """

    count: int
    seed: int
    part: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """An image in -1..1 and its class."""
        return odd_one_out(np.random.default_rng([self.seed, self.part, index]), odd=index % 2 == 1)


def odd_one_out(rng: np.random.Generator, odd: bool) -> tuple[Image, int]:
    """One image, with an odd bar or without.

    The odd one differs from the others in hue, by a twelfth of the circle or more, or in orientation, by 15
    degrees or more; in the other property it is like them.

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
    hue: Float[np.ndarray, "cells"], angle: Float[np.ndarray, "cells"], moved: Float[np.ndarray, "2 cells"]
) -> Image:
    """Bars with soft edges on gray, each within its cell."""
    middle = np.arange(CELL) + 0.5 - CELL / 2
    down, right = middle[None, :, None] - moved[0, :, None, None], middle[None, None, :] - moved[1, :, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along, across = abs(right * cos + down * sin), abs(down * cos - right * sin)
    cover = np.clip(HALF_LENGTH + 0.5 - along, 0, 1) * np.clip(HALF_WIDTH + 0.5 - across, 0, 1)
    colour = np.array([colorsys.hsv_to_rgb(h % 1, 0.9, 0.9) for h in hue])
    cells = GRAY + cover[..., None] * (colour[:, None, None] - GRAY)
    side = CELLS * CELL
    image = cells.reshape(CELLS, CELLS, CELL, CELL, 3).swapaxes(1, 2).reshape(side, side, 3)
    return (2 * image - 1).astype(np.float32)
