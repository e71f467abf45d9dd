"""Resamples pixels in the same way as `tf.image.resize` or Pillow."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, Union

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

# Pillow and SciPy are imported where they are needed, so that importing this module stays light.
Source = Union["PIL.Image.Image", np.ndarray]
Box = tuple[int, int, int, int]  # top, left, height and width of a rectangle
Filter = Literal[
    "area",
    "bilinear",
    "pil-bilinear",
    "pil-bicubic",
    "pil-lanczos",
    "pil-box",
    "pil-hamming",
    "pil-nearest",
]
"""Names of resampling filters. "area" and "bilinear" are those of `tf.image.resize`; names with the prefix "pil-" are
those of Pillow."""


CACHED = 1 << 14  # largest sum of an old and a new side for which weights are cached
TILE = 1 << 18
"""Number of pixels that are resampled at the same time, as float64. A larger image is resampled in tiles."""
SIDE = 512
"""Side of such a tile in new pixels. The side in old pixels is the same, unless a single new pixel covers more old
pixels."""


class Band(NamedTuple):
    """A range of new pixels along an axis, the first old pixel that contributes, and a sparse matrix of weights.

    New pixels are counted from the first pixel of the part that is computed. The matrix has one row per new pixel, and
    one column per old pixel, starting with the first that contributes.
    """

    new: slice
    first: int
    weights: "csr_array"


def region(image: Source, top: int, left: int, height: int, width: int) -> Shaped[np.ndarray, "_ _ *channels"]:
    """Returns a rectangle of an image of any mode as an array."""
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return np.asarray(image.crop((left, top, left + width, top + height)))


def resize(image: Source, shape: tuple[int, int], filter: Filter, box: Box) -> UInt8[np.ndarray, "_ _ 3"]:
    """Resamples an RGB image to the height and width in `shape`, and returns the rectangle `box` of the result.

    TensorFlow's filters are computed in float64, and need 3 x 8 bytes per pixel of a tile.
    """
    if filter.startswith("pil"):
        from PIL import Image

        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        resample = Image.Resampling[filter.removeprefix("pil-").upper()]
        return region(image.resize(shape[::-1], resample), *box)
    old = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    top, left, height, width = box
    resized = np.empty((height, width, 3), np.uint8)
    for columns, first, across in _bands(old[1], shape[1], (left, width), filter, SIDE):
        most = max(1, min(SIDE, TILE // across.shape[1]))
        for rows, start, along in _bands(old[0], shape[0], (top, height), filter, most):
            tile = _resampled(image, start, first, along, across)
            # `astype` truncates; 1e-5 is added because rounding errors may leave values just below an integer.
            resized[rows, columns] = (tile + 1e-5).astype(np.uint8)
    return resized


def _resampled(
    image: Source, top: int, left: int, down: "csr_array", right: "csr_array"
) -> Float64[np.ndarray, "_ _ 3"]:
    """Computes a tile from the old pixels at `top` and `left`: new rows and columns are weighted sums of old ones."""
    (new, height), width = down.shape, right.shape[1]
    step, parts = max(1, TILE // height), []
    for first in range(0, width, step):
        part = region(image, top, left + first, height, min(step, width - first)).astype(np.float64)
        parts.append((down @ part.reshape(height, -1)).reshape(new, -1, 3))
    resized_rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    columns = np.ascontiguousarray(resized_rows.swapaxes(0, 1)).reshape(width, -1)
    return (right @ columns).reshape(-1, new, 3).swapaxes(0, 1)


def _bands(old: int, new: int, part: tuple[int, int], filter: str, most: int) -> Sequence[Band]:
    """Calls `_split`, and caches its result unless the sides are long."""
    return (_split if old + new <= CACHED else _split.__wrapped__)(old, new, part, filter, most)


@lru_cache(maxsize=256)  # the images of a set often have only a few different sizes
def _split(old: int, new: int, part: tuple[int, int], filter: str, most: int) -> Sequence[Band]:
    """Splits a part of the new pixels into bands.

    Args:
      old, new: number of pixels along the axis before and after resizing.
      part: index of the first new pixel, and number of new pixels.
      filter: "area" or "bilinear".
      most: largest number of new pixels in a band. A band covers at most `SIDE` old pixels, unless it has only one new
        pixel.
    """
    from scipy.sparse import csr_array

    taps = list(_taps(old, new, part, filter))
    firsts = np.array([first for first, _ in taps])
    ends = firsts + [len(weights) for _, weights in taps]
    bands, begin = [], 0
    while begin < len(taps):
        fitting = int(np.searchsorted(ends, firsts[begin] + SIDE, "right"))
        end = min(max(fitting, begin + 1), begin + most, len(taps))
        first, weights = int(firsts[begin]), [weights for _, weights in taps[begin:end]]
        columns = np.concatenate([np.arange(a, b) for a, b in zip(firsts[begin:end], ends[begin:end], strict=True)])
        starts = np.cumsum([0] + [len(weight) for weight in weights])
        matrix = csr_array(
            (np.concatenate(weights), columns - first, starts), (end - begin, int(ends[end - 1]) - first)
        )
        bands.append(Band(slice(begin, end), first, matrix))
        begin = end
    return bands


def _taps(old: int, new: int, part: tuple[int, int], filter: str) -> Iterator[tuple[int, np.ndarray]]:
    """For each new pixel of a part, yields the index of the first old pixel that contributes, and the weights.

    `part` is the index of the first new pixel, and the number of new pixels. The weights are those of consecutive old
    pixels, starting at the index. "area" takes the mean over the interval of old pixels that the new pixel covers,
    including fractions of pixels at the ends, also when the image is enlarged. "bilinear" interpolates between the two
    old pixels nearest to the centre of the new pixel; edge pixels are repeated.
    """
    for low, high in pairwise(np.arange(part[0], sum(part) + 1) * old / new):
        if filter == "area":
            first = int(low)
            index = np.arange(first, min(int(np.ceil(high)), old))
            weights = np.minimum(high, index + 1) - np.maximum(low, index)
        else:
            centre = np.clip((low + high) / 2 - 0.5, 0, old - 1)
            first = min(int(centre), max(old - 2, 0))
            weights = np.array([first + 1 - centre, centre - first][:old])
        yield first, weights / weights.sum()
