"""Resamples pixels as `tf.image.resize` or Pillow does."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import UInt8

# Pillow is imported where it is needed, so that importing this module stays light.
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


def resize(pixels: UInt8[np.ndarray, "_ _ 3"], shape: tuple[int, int], filter: Filter) -> UInt8[np.ndarray, "_ _ 3"]:
    """The pixels resampled to `shape`, (height, width)."""
    if filter.startswith("pil"):
        from PIL import Image

        resample = Image.Resampling[filter.removeprefix("pil-").upper()]
        return np.asarray(Image.fromarray(pixels).resize(shape[::-1], resample))
    for size in shape:  # rows, then columns: each new row or column is a weighted sum of neighbouring old ones
        flat = np.ascontiguousarray(pixels, np.float64).reshape(len(pixels), -1)
        pixels = (_weights(len(flat), size, filter) @ flat).reshape(size, *pixels.shape[1:]).swapaxes(0, 1)
    return (pixels + 1e-5).astype(
        np.uint8
    )  # `astype` truncates; 1e-5 corrects values that rounding errors left just below an integer


@lru_cache(maxsize=256)  # the images of a set often have only a few different sizes
def _weights(old: int, new: int, filter: str):
    """The weights of `_taps` as a sparse matrix (new, old)."""
    from scipy.sparse import csr_array

    taps = list(_taps(old, new, filter))
    columns = np.concatenate([first + np.arange(len(weights)) for first, weights in taps])
    ends = np.cumsum([0] + [len(weights) for _, weights in taps])
    return csr_array((np.concatenate([weights for _, weights in taps]), columns, ends), shape=(new, old))


def _taps(old: int, new: int, filter: str) -> Iterator[tuple[int, np.ndarray]]:
    """For each new pixel, yields the index of the first old pixel that contributes, and the weights of old pixels.

    The weights belong to consecutive old pixels, of which the index is the first. "area" takes the mean over the
    interval of old pixels that the new pixel covers, with fractional ends, also when enlarging. "bilinear" interpolates
    between the two old pixels nearest to the centre of the new pixel; edge pixels are repeated.
    """
    for low, high in pairwise(np.arange(new + 1) * old / new):
        if filter == "area":
            first = int(low)
            index = np.arange(first, min(int(np.ceil(high)), old))
            weights = np.minimum(high, index + 1) - np.maximum(low, index)
        else:
            centre = np.clip((low + high) / 2 - 0.5, 0, old - 1)
            first = min(int(centre), max(old - 2, 0))
            weights = np.array([first + 1 - centre, centre - first][:old])
        yield first, weights / weights.sum()
