"""Photographs to what a model takes: opened, resized, cropped and normalised as its family does it."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
from jaxtyping import Float, UInt8

from qkjax.errors import QkjaxError

# Pillow is imported where it is needed, so that importing this module stays light.
Photograph = Union["PIL.Image.Image", np.ndarray]  # an array is uint8, (height, width, 3), RGB
Pixels = UInt8[np.ndarray, "height width 3"]
Values = Float[np.ndarray, "height width 3"]
RGB = tuple[float, float, float]
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


def preprocess(image: Photograph, preset: Preprocess, resolution: int | None = None) -> Values:
    """What the model takes, float32: `normalise` of `picture`."""
    return normalise(picture(image, preset, resolution), preset)


def normalise(pixels: Pixels, preset: Preprocess) -> Values:
    """Pixels 0..255 to the model's range, float32."""
    return ((pixels / 255 - np.asarray(preset.mean)) / np.asarray(preset.std)).astype(np.float32)


def picture(image: Photograph, preset: Preprocess, resolution: int | None = None) -> Pixels:
    """The very pixels that the model sees, RGB, before normalisation: a square of `resolution` a side.

    Args:
      image: of any mode and size; an array is uint8 (height, width, 3).
      preset: one of `PRESETS`, or from `from_processor_config`.
      resolution: pixels a side; by default the preset's own.

    Raises:
      QkjaxError: no uint8 RGB array; smaller than the crop and not resized; too long a strip.
    """
    crop = preset.crop if resolution is None else resolution
    pixels = image if isinstance(image, np.ndarray) else np.asarray(_to_rgb(image, "the image"))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise QkjaxError(f"an image array is uint8 of shape (height, width, 3), not {pixels.dtype} {pixels.shape}")
    height, width = _resized_shape(pixels.shape[:2], preset, round(preset.resize_to * crop / preset.crop))
    if not 0 < crop <= min(height, width):
        raise QkjaxError(f"cannot cut a square of {crop} pixels out of {width} x {height}; choose another resolution")
    resized = pixels if (height, width) == pixels.shape[:2] else _resize(pixels, (height, width), preset.filter)
    top, left = (height - crop) // 2, (width - crop) // 2
    return resized[top : top + crop, left : left + crop].copy()


def _resized_shape(shape: tuple[int, ...], preset: Preprocess, resize_to: int) -> tuple[int, int]:
    """(height, width). The long side is rounded down by transformers, to the nearest by big_vision."""
    if preset.resize != "small side":
        return (resize_to, resize_to) if preset.resize == "squash" else (shape[0], shape[1])
    if preset.filter.startswith("pil"):
        height, width = (resize_to * side // min(shape) for side in shape)
    else:
        factor = np.float32(resize_to) / np.float32(min(shape))  # in float32, as there
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
        flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
        rows = [weights @ flat[first : first + len(weights)] for first, weights in _taps(len(flat), size, filter)]
        pixels = np.stack(rows).reshape(size, *pixels.shape[1:]).swapaxes(0, 1)
    return (pixels + 1e-5).astype(np.uint8)  # truncated, but what rounding left just below its value stays what it is


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


def open_image(path: str | Path) -> "PIL.Image.Image":
    """A photograph in RGB, upright as its EXIF says; of an animation the first frame.

    Transparent pixels are shown on white, as transformers and most viewers show them: what lies hidden
    beneath them is arbitrary. 16-bit gray is scaled to 8 bits, where Pillow alone would clip it to white.

    Raises:
      QkjaxError: no file, no image, broken or cut off, above Pillow's limit of size, or float pixels.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to complain of a readable picture
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise QkjaxError(f"cannot read image {path}: {error}; check the path, or save it as PNG or JPEG") from error
    return _to_rgb(upright, str(path))


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


# What the classes of transformers assume where the file says nothing; of an int whether it means a square.
_KEYS = ("size", "default_to_square", "do_center_crop", "crop_size", "resample", "image_mean", "image_std")
_CLASSES = {
    "ViT": (224, True, False, None, 2, *HALF),
    "DeiT": (256, True, True, 224, 3, *HALF),
    "CLIP": (224, False, True, 224, 3, *CLIP),
    "Bit": (224, False, True, 224, 3, *CLIP),
    "Siglip": (224, True, False, None, 3, *HALF),
    "DINOv3ViT": (224, True, False, None, 2, *IMAGENET),
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


def from_processor_config(config: Mapping[str, Any]) -> Preprocess:
    """What the JSON of a Hugging Face preprocessor_config.json, old or new, says.

    Raises:
      QkjaxError: an unknown class, step, size or filter; a missing key; pictures that are not square.
    """
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    name = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind or "")
    if kind and name not in _CLASSES:
        raise _unknown(f"names {kind}; known are those of {', '.join(_CLASSES)}")
    said = dict(zip(_KEYS, _CLASSES.get(name, ()), strict=False))
    said |= {key: value for key, value in config.items() if value is not None}
    steps = {key for key, value in said.items() if key.startswith("do_") and value} - _STEPS
    if steps:
        raise _unknown(f"has {min(steps)}=true, which is not supported")
    crop = _side(said, "crop_size")[0] if said.get("do_center_crop") else None
    resize_to, square = _side(said, "size") if said.get("do_resize", True) else (crop, False)
    if not (crop or square) or (crop or 0) > resize_to:
        raise _unknown("makes pictures that are not square, or pads them")
    resize = "none" if not said.get("do_resize", True) else "squash" if square else "small side"
    filters = {2: "pil-bilinear", 3: "pil-bicubic"}
    if said.get("resample") not in filters:
        raise _unknown(f"has resample={said.get('resample')}; known are 2 (bilinear) and 3 (bicubic)")
    return Preprocess(resize, filters[said["resample"]], resize_to, crop or resize_to, *_mean_std(said))


def _unknown(what: str) -> QkjaxError:
    return QkjaxError(f"preprocessor_config.json {what}; correct it or give a `Preprocess` of your own")


def _side(said: Mapping[str, Any], key: str) -> tuple[int, bool]:
    """Pixels, and whether of a square (else of the short side)."""
    size, square = said.get(key), key == "crop_size" or said.get("default_to_square", True)
    if isinstance(size, Mapping):
        given = {k: v for k, v in size.items() if v is not None}
        square = given.keys() == {"height", "width"} and given["height"] == given["width"]
        size = next(iter(given.values())) if square or given.keys() == {"shortest_edge"} else None
    if not isinstance(size, int) or size < 1:
        raise _unknown(f"has {key}={said.get(key)}; known are a number, one shortest_edge, or a square")
    return size, square


def _mean_std(said: Mapping[str, Any]) -> tuple[RGB, RGB]:
    """Of values in 0..1, whatever the file rescales to."""
    try:
        mean, std = (said["image_mean"], said["image_std"]) if said.get("do_normalize", True) else (0, 1)
        factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
        scale = round(255 * factor, 9)  # exactly 1 for the usual 1/255
        mean, std = (tuple(float(x) / scale for x in np.broadcast_to(values, 3)) for values in (mean, std))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _unknown("has no usable image_mean, image_std and rescale_factor") from error
    return mean, std
