"""Resamples pixels in the same way as `tf.image.resize` or Pillow."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Union

import numpy as np
from jaxtyping import Float64, Int, Shaped, UInt8

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
TILE = 1 << 16
"""Number of pixels that are resampled at the same time, as float64. A larger image is resampled in tiles. A tile of 1.5
MB stays below the 4 MB from which numpy asks the system for new pages, which would take longer than resampling."""
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


class Taps(NamedTuple):
    """The old pixels that contribute to each new pixel along an axis. They are consecutive.

    Attributes:
      firsts, ends: index of the first old pixel, and index after the last old pixel.
      weights: weights of the old pixels, one new pixel after the other. The weights of each new pixel sum to 1.
    """

    firsts: Int[np.ndarray, "new"]
    ends: Int[np.ndarray, "new"]
    weights: Float64[np.ndarray, "weights"]


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
    resized = np.empty((width, height, 3), np.uint8)
    for columns, first, across in _bands(old[1], shape[1], (left, width), filter, SIDE):
        most = max(1, min(SIDE, TILE // across.shape[1]))
        for rows, start, along in _bands(old[0], shape[0], (top, height), filter, most):
            tile = _resampled(image, start, first, along, across)
            tile += 1e-5  # corrects values that rounding errors left just below an integer; `astype` truncates
            resized[columns, rows] = tile.astype(np.uint8)
    return _transposed(resized)


def _resampled(
    image: Source, top: int, left: int, down: "csr_array", right: "csr_array"
) -> Float64[np.ndarray, "columns rows 3"]:
    """Computes a tile from the old pixels at `top` and `left`: new rows and columns are weighted sums of old ones."""
    (new, height), width = down.shape, right.shape[1]
    step = max(1, TILE // height)
    columns = np.empty((width, new, 3)) if step < width else None
    for first in range(0, width, step):
        part = region(image, top, left + first, height, min(step, width - first)).astype(np.float64)
        resized_rows = _transposed((down @ part.reshape(height, -1)).reshape(new, -1, 3))
        if columns is None:
            columns = resized_rows
        else:
            columns[first : first + step] = resized_rows
    return (right @ columns.reshape(width, -1)).reshape(-1, new, 3)


def _transposed(pixels: Shaped[np.ndarray, "height width 3"]) -> Shaped[np.ndarray, "width height 3"]:
    """Returns rows as columns, in a new contiguous array. Numpy copies three colours faster as one item."""
    pixels = np.ascontiguousarray(pixels)
    items = pixels.view(np.dtype((np.void, 3 * pixels.itemsize)))[..., 0]
    return np.ascontiguousarray(items.T)[..., None].view(pixels.dtype)


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

    firsts, ends, weights = _taps(old, new, part, filter)
    starts = np.concatenate([[0], np.cumsum(ends - firsts)])
    columns = np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], ends - firsts)
    bands, begin = [], 0
    while begin < len(firsts):
        fitting = int(np.searchsorted(ends, firsts[begin] + SIDE, "right"))
        end = min(max(fitting, begin + 1), begin + most, len(firsts))
        first, own = int(firsts[begin]), slice(starts[begin], starts[end])
        matrix = csr_array(
            (weights[own], columns[own] - first, starts[begin : end + 1] - starts[begin]),
            (end - begin, int(ends[end - 1]) - first),
        )
        bands.append(Band(slice(begin, end), first, matrix))
        begin = end
    return bands


def _taps(old: int, new: int, part: tuple[int, int], filter: str) -> Taps:
    """Returns the old pixels that contribute to some new pixels, and their weights.

    `part` is the index of the first new pixel, and the number of new pixels. "area" takes the mean over the interval of
    old pixels that the new pixel covers, including fractions of pixels at the ends, even when the image is enlarged.
    "bilinear" interpolates between the two old pixels nearest to the centre of the new pixel; edge pixels are repeated.
    """
    bounds = np.arange(part[0], sum(part) + 1) * old / new
    low, high = bounds[:-1], bounds[1:]
    centre = np.clip((low + high) / 2 - 0.5, 0, old - 1)
    if filter == "area":
        firsts = low.astype(int)
        ends = np.minimum(np.ceil(high).astype(int), old)
    else:
        firsts = np.minimum(centre.astype(int), max(old - 2, 0))
        ends = np.minimum(firsts + 2, old)
    counts = ends - firsts
    weights, starts = np.empty(counts.sum()), np.cumsum(counts) - counts
    for count in np.unique(counts):  # at most a few counts differ
        of = np.flatnonzero(counts == count)[:, None]
        index = firsts[of] + np.arange(count)
        if filter == "area":
            own = np.minimum(high[of], index + 1) - np.maximum(low[of], index)
        else:
            own = np.concatenate([firsts[of] + 1 - centre[of], centre[of] - firsts[of]], axis=1)[:, :count]
        weights[starts[of] + np.arange(count)] = own / own.sum(1, keepdims=True)
    return Taps(firsts, ends, weights)
