"""Draws query and key maps over the picture that the model sees, as pixels."""

import numpy as np
from jaxtyping import Float, UInt8

LIMITS = (30, 95)
"""The percentiles of a map that are drawn with brightness 0 and 1, as in the authors' code."""
PICTURE = 0.55
"""Brightness of the grey picture under the colours. On a brighter picture, the colours would not be visible enough."""

Picture = UInt8[np.ndarray, "height width 3"]
Map = Float[np.ndarray, "rows columns"]


def brightness(values: Map, limits: tuple[float, float] = LIMITS) -> Map:
    """Scales a map so that two of its percentiles become 0 and 1; clips the result to the range from 0 to 1.

    A constant map becomes 0 everywhere.
    """
    low, high = np.percentile(values, limits)
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def enlarge(values: Map, shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    """Enlarges a map to the size of the picture, so that each value fills the pixels of its patch."""
    row, column = (np.arange(size) * count // size for size, count in zip(shape[:2], values.shape, strict=True))
    return values[row][:, column]


def overlay(picture: Picture, query_map: Map, key_map: Map) -> Picture:
    """Draws a query map and a key map over the grey picture (the paper, figures 1, 4 and 5).

    Patches with a high query map are red, patches with a high key map are cyan, and patches with high values in both
    maps are white.
    """
    grey = PICTURE * (picture / 255) @ np.array([0.299, 0.587, 0.114])
    red, cyan = (enlarge(brightness(values), picture.shape) for values in (query_map, key_map))
    colours = [grey + (1 - grey) * amount for amount in (red, cyan, cyan)]
    return (np.stack(colours, axis=-1) * 255).round().astype(np.uint8)


def map_pixels(values: Map, shape: tuple[int, ...], channels: tuple[int, ...]) -> Picture:
    """Draws a single map without the picture, in the given colour channels: (0,) for red, or (1, 2) for cyan."""
    pixels = np.zeros((*shape[:2], 3))
    pixels[..., channels] = enlarge(brightness(values), shape)[..., None]
    return (pixels * 255).round().astype(np.uint8)


def with_windows(picture: Picture, side: tuple[int, int]) -> Picture:
    """A copy of a picture with white lines, two pixels wide, between windows of (height, width) pixels.

    Example:
      >>> import numpy as np
      >>> with_windows(np.zeros((4, 8, 3), np.uint8), (4, 4))[0, :, 0].tolist()
      [0, 0, 0, 255, 255, 0, 0, 0]
    """
    copy = picture.copy()
    for row in range(side[0], len(picture), side[0]):
        copy[row - 1 : row + 1] = 255
    for column in range(side[1], picture.shape[1], side[1]):
        copy[:, column - 1 : column + 1] = 255
    return copy
