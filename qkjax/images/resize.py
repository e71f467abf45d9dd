"""Resamples pixels as `tf.image.resize` or Pillow does."""

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
"""Names of resampling filters: "area" and "bilinear" as in `tf.image.resize`, and Pillow's with the prefix "pil-"."""


CACHED = 1 << 14  # longest sides, old and new together, whose weights are kept
TILE = 1 << 18
"""Pixels that are resampled at the same time, as float64; a larger image is resampled in tiles."""
SIDE = 512
"""Sides of such a tile in new pixels, and in old pixels unless a new pixel covers more of them."""


class Band(NamedTuple):
    """Some new pixels along an axis, the first old pixel that contributes to them, and a sparse matrix of weights.

    The new pixels are counted from the first of the part that is computed. The matrix has one row for each new pixel,
    and one column for each old pixel from the first on.
    """

    new: slice
    first: int
    weights: "csr_array"


def region(image: Source, top: int, left: int, height: int, width: int) -> Shaped[np.ndarray, "_ _ *channels"]:
    """A rectangle of an image of any mode, as an array."""
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return np.asarray(image.crop((left, top, left + width, top + height)))


def resize(image: Source, shape: tuple[int, int], filter: Filter, box: Box) -> UInt8[np.ndarray, "_ _ 3"]:
    """Resamples an RGB image to `shape`, (height, width), and returns a rectangle of the result.

    The filters of TensorFlow compute in float64, and need 3 x 8 bytes per pixel of a tile.
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
            # `astype` truncates; 1e-5 corrects values that rounding errors left just below an integer.
            resized[rows, columns] = (tile + 1e-5).astype(np.uint8)
    return resized


def _resampled(
    image: Source, top: int, left: int, down: "csr_array", right: "csr_array"
) -> Float64[np.ndarray, "_ _ 3"]:
    """A tile from the old pixels at `top` and `left`: each new row or column is a weighted sum of old ones."""
    (new, height), width = down.shape, right.shape[1]
    step, parts = max(1, TILE // height), []
    for first in range(0, width, step):
        part = region(image, top, left + first, height, min(step, width - first)).astype(np.float64)
        parts.append((down @ part.reshape(height, -1)).reshape(new, -1, 3))
    resized_rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    columns = np.ascontiguousarray(resized_rows.swapaxes(0, 1)).reshape(width, -1)
    return (right @ columns).reshape(-1, new, 3).swapaxes(0, 1)


def _bands(old: int, new: int, part: tuple[int, int], filter: str, most: int) -> Sequence[Band]:
    """The cached `_split`; the weights of long sides are not kept."""
    return (_split if old + new <= CACHED else _split.__wrapped__)(old, new, part, filter, most)


@lru_cache(maxsize=256)  # the images of a set often have only a few different sizes
def _split(old: int, new: int, part: tuple[int, int], filter: str, most: int) -> Sequence[Band]:
    """Splits a part of the new pixels into bands.

    Args:
      old, new: number of pixels along the axis, before and after.
      part: the first new pixel, and the number of new pixels.
      filter: "area" or "bilinear".
      most: largest number of new pixels in a band. A band has at most `SIDE` old pixels, or one new pixel.
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
    """For some new pixels, yields the index of the first old pixel that contributes, and the weights of old pixels.

    `part` is the first new pixel, and the number of new pixels. The weights belong to consecutive old pixels, of which
    the index is the first. "area" takes the mean over the interval of old pixels that the new pixel covers, with
    fractional ends, also when enlarging. "bilinear" interpolates between the two old pixels nearest to the centre of
    the new pixel; edge pixels are repeated.
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
