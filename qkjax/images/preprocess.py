"""Photographs to what a model takes: opened, resized, cropped and normalised as its family does it."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import IOBase
from itertools import pairwise
from pathlib import Path
from typing import Literal, Union

import numpy as np
from jaxtyping import Float, Int, UInt8

from qkjax.errors import QkjaxError

# Pillow is imported where it is needed, so that importing this module stays light.
Photograph = Union["PIL.Image.Image", np.ndarray]  # an array is uint8, (height, width, 3), RGB
Pixels = UInt8[np.ndarray, "height width 3"]
Values = Float[np.ndarray, "height width 3"]
RGB = tuple[float, float, float]
Resolution = int | tuple[int, int]  # pixels of a side, or (height, width)
MAX_PIXELS = 100_000_000  # of a resized picture; only a strip of extreme sides comes here


@dataclass(frozen=True)
class Preprocess:
    """How one family prepares a photograph: resize, then cut a square from the centre, then normalise.

    resize: "small side" keeps the aspect ratio, "squash" does not, "none" only cuts.
    filter: "area" and "bilinear" are `tf.image.resize`'s (bilinear without antialiasing, half-pixel
      centres), truncated to uint8 as big_vision does; the pil- ones are Pillow's, antialiased.
    resize_to, crop: in pixels, the side resized to and the side cut out, which the model sees. At
      another resolution both scale.
    mean, std: per colour, of values in 0..1; the model takes (value - mean) / std.
    """

    resize: Literal["small side", "squash", "none"]
    filter: Literal["area", "bilinear", "pil-bilinear", "pil-bicubic"]
    resize_to: int
    crop: int
    mean: RGB
    std: RGB


HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # 0..1 to -1..1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

PRESETS = {
    # Google's own code, as it evaluates
    "bigvision-small-crop": Preprocess("small side", "area", 256, 224, *HALF),
    "augreg-384": Preprocess("small side", "area", 448, 384, *HALF),
    "flexivit": Preprocess("small side", "area", 272, 240, *HALF),
    "flexivit-i1k": Preprocess("squash", "bilinear", 272, 240, *HALF),  # those trained on ImageNet-1k alone
    "squash": Preprocess("squash", "bilinear", 224, 224, *HALF),
    # Hugging Face: the classes of transformers; mean and std of dino, deit and mae are those they were trained with
    "hf-vit": Preprocess("squash", "pil-bilinear", 224, 224, *HALF),
    "hf-dino": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
    "hf-dinov2": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
    "hf-clip": Preprocess("small side", "pil-bicubic", 224, 224, *CLIP),
    "hf-deit": Preprocess("squash", "pil-bicubic", 256, 224, *IMAGENET),  # a size of 256 means 256 x 256 to its class
    "hf-siglip": Preprocess("squash", "pil-bicubic", 224, 224, *HALF),
    "hf-mae": Preprocess("squash", "pil-bilinear", 224, 224, *IMAGENET),
    "hf-ijepa": Preprocess("squash", "pil-bilinear", 224, 224, *HALF),
    # microsoft/SimMIM, data_finetune.py; torchvision's crop may lie one pixel further where a margin is odd
    "simmim": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
}


def preprocess(image: Photograph, preset: Preprocess, resolution: Resolution | None = None) -> Values:
    """What the model takes, float32: `normalise` of `picture`."""
    return normalise(picture(image, preset, resolution), preset)


def normalise(
    pixels: UInt8[np.ndarray, "*batch height width 3"], preset: Preprocess
) -> Float[np.ndarray, "*batch height width 3"]:
    """Pixels 0..255 of one image or of several to the model's range, float32."""
    return ((pixels / 255 - np.asarray(preset.mean)) / np.asarray(preset.std)).astype(np.float32)


def picture(image: Photograph, preset: Preprocess, resolution: Resolution | None = None) -> Pixels:
    """The very pixels that the model sees, RGB, before normalisation.

    Args:
      image: of any mode and size; an array is uint8 (height, width, 3).
      preset: one of `PRESETS`, or from `from_processor_config`.
      resolution: pixels of a side, or (height, width); by default the preset's own square. What is
        not square is cut from the smallest resized picture that covers it, with the same margins.

    Raises:
      QkjaxError: no uint8 RGB array; smaller than the crop and not resized; too long a strip.
    """
    crop = side_lengths(preset, resolution)
    pixels = image if isinstance(image, np.ndarray) else np.asarray(_to_rgb(image, "the image"))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise QkjaxError(f"an image array is uint8 of shape (height, width, 3), not {pixels.dtype} {pixels.shape}")
    height, width = _resized_shape(pixels.shape[:2], preset, crop)
    if not (0 < crop[0] <= height and 0 < crop[1] <= width):
        raise QkjaxError(
            f"cannot cut {crop[1]} x {crop[0]} pixels out of {width} x {height} (width x height); "
            "choose another resolution"
        )
    resized = pixels if (height, width) == pixels.shape[:2] else _resize(pixels, (height, width), preset.filter)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return resized[top : top + crop[0], left : left + crop[1]].copy()


def source_pixels(
    shape: tuple[int, int], preset: Preprocess, resolution: Resolution | None = None
) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "columns"]]:
    """For the rows and the columns of what `picture` gives, the nearest ones of an image of this (height, width): for
    maps of labels, which cannot be averaged."""
    crop, found = side_lengths(preset, resolution), []
    for old, new, side in zip(shape, _resized_shape(shape, preset, crop), crop, strict=True):
        first = (new - side) // 2
        found.append(((np.arange(side) + first + 0.5) * old / new).astype(int).clip(0, old - 1))
    return found[0], found[1]


def side_lengths(preset: Preprocess, resolution: Resolution | None) -> tuple[int, int]:
    """(height, width) of what `picture` gives."""
    sides = preset.crop if resolution is None else resolution
    return (sides, sides) if isinstance(sides, int) else sides


def _resized_shape(shape: tuple[int, ...], preset: Preprocess, crop: tuple[int, int]) -> tuple[int, int]:
    """(height, width). The side that is not fitted is rounded down by transformers, to the nearest by big_vision."""
    target = tuple(round(preset.resize_to * side / preset.crop) for side in crop)
    if preset.resize != "small side":
        return (target[0], target[1]) if preset.resize == "squash" else (shape[0], shape[1])
    fitted = max((0, 1), key=lambda axis: target[axis] / shape[axis])  # the other side then covers its target
    if preset.filter.startswith("pil"):
        height, width = (target[fitted] * side // shape[fitted] for side in shape)
    else:
        factor = np.float32(target[fitted]) / np.float32(shape[fitted])  # in float32, as there
        height, width = (int(np.rint(np.float32(side) * factor)) for side in shape)
    if height * width > MAX_PIXELS:
        raise QkjaxError(f"an image of {shape[1]} x {shape[0]} pixels is too long a strip to resize; cut it first")
    return height, width


def _resize(pixels: Pixels, shape: tuple[int, int], filter: str) -> UInt8[np.ndarray, "_ _ 3"]:
    if filter.startswith("pil"):
        from PIL import Image

        resample = Image.Resampling.BILINEAR if filter == "pil-bilinear" else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(pixels).resize(shape[::-1], resample))
    for size in shape:  # rows, then columns: each new one is a weighted sum of a few neighbouring old ones
        flat = np.ascontiguousarray(pixels, np.float64).reshape(len(pixels), -1)
        pixels = (_weights(len(flat), size, filter) @ flat).reshape(size, *pixels.shape[1:]).swapaxes(0, 1)
    return (pixels + 1e-5).astype(np.uint8)  # truncated, but what rounding left just below its value stays what it is


@lru_cache(maxsize=256)  # images of a set are often of a few sizes
def _weights(old: int, new: int, filter: str):
    """The sparse matrix (new, old) of `_taps`."""
    from scipy.sparse import csr_array

    taps = list(_taps(old, new, filter))
    columns = np.concatenate([first + np.arange(len(weights)) for first, weights in taps])
    ends = np.cumsum([0] + [len(weights) for _, weights in taps])
    return csr_array((np.concatenate([weights for _, weights in taps]), columns, ends), shape=(new, old))


def _taps(old: int, new: int, filter: str) -> Iterator[tuple[int, np.ndarray]]:
    """For every new pixel the first old one that counts, and the weights of it and of those that follow.

    "area" is the mean over the stretch of old pixels that the new one covers, with fractional ends, also
    where it enlarges. "bilinear" blends the two around the centre of the new one, the edge repeated.
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


def open_image(file: str | Path | IOBase, name: str | None = None) -> "PIL.Image.Image":
    """A photograph in RGB, upright as its EXIF says; of an animation the first frame.

    Args:
      file: its path, or an open file.
      name: what errors call it; by default the path.

    Transparent pixels are shown on white, as transformers and most viewers show them: what lies hidden
    beneath them is arbitrary. 16-bit gray is scaled to 8 bits, where Pillow alone would clip it to white.

    Raises:
      QkjaxError: no file, no image, broken or cut off, above Pillow's limit of size, or float pixels.
    """
    from PIL import Image, ImageOps

    # Odd metadata is no reason to complain of a readable picture. Set for good: a filter for this call
    # alone would be one for all threads that decode at the same time, and be left behind.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    name = name or str(file)
    try:
        with Image.open(file) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise ValueError(f"{image.width} x {image.height} pixels are more than Pillow's limit")
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        # It may name the file in its own way, an open one by an address in memory.
        reason = str(error).replace(repr(str(file)), repr(name)).replace(str(file), name)
        raise QkjaxError(f"cannot read image {name}: {reason}; check it, or save it as PNG or JPEG") from error
    return _to_rgb(upright, name)


def _to_rgb(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    from PIL import Image

    if image.mode == "F":
        raise QkjaxError(f"{name} has float pixels of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise QkjaxError(f"{name} has 32-bit pixels of unknown range; save it with 8 or 16 bits")
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))  # to the nearest
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
