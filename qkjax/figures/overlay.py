"""Query and key maps over the picture that the model gets, as pixels."""

import numpy as np
from jaxtyping import Float, UInt8

LIMITS = (30, 95)
"""Percentiles of a map between which its brightness runs, as in the authors' code."""
PICTURE = 0.55
"""Brightness of the grey picture under the colours, which would not stand out on a brighter one."""

Picture = UInt8[np.ndarray, "height width 3"]
Map = Float[np.ndarray, "rows columns"]


def brightness(values: Map, limits: tuple[float, float] = LIMITS) -> Map:
    """A map scaled to 0..1 between two of its percentiles; all 0 for a constant map."""
    low, high = np.percentile(values, limits)
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def enlarge(values: Map, shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    """A map at the size of the picture: one block of pixels per patch, which covers the patch to the pixel."""
    row, column = (np.arange(size) * count // size for size, count in zip(shape[:2], values.shape, strict=True))
    return values[row][:, column]


def overlay(picture: Picture, query_map: Map, key_map: Map) -> Picture:
    """Red where the query map is high, cyan where the key map is, white where both are, over the grey
    picture (paper, figures 1, 4 and 5)."""
    grey = PICTURE * (picture / 255) @ np.array([0.299, 0.587, 0.114])
    red, cyan = (enlarge(brightness(values), picture.shape) for values in (query_map, key_map))
    colours = [grey + (1 - grey) * amount for amount in (red, cyan, cyan)]
    return (np.stack(colours, axis=-1) * 255).round().astype(np.uint8)


def map_pixels(values: Map, shape: tuple[int, ...], channels: tuple[int, ...]) -> Picture:
    """One map alone, black to red (channel 0) or to cyan (1 and 2)."""
    pixels = np.zeros((*shape[:2], 3))
    pixels[..., channels] = enlarge(brightness(values), shape)[..., None]
    return (pixels * 255).round().astype(np.uint8)
