"""Converts photographs to the input of a model: opens, resizes, crops and normalises them as its family does."""

import warnings
from dataclasses import dataclass
from functools import cache
from io import IOBase
from pathlib import Path
from typing import Literal, Union

import numpy as np
from jaxtyping import Float, Int, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.resize import Filter, resize
from qkjax.images.rgb import scale_transparency, to_rgb

# Pillow is imported where it is needed, so that importing this module stays light.
Photograph = Union["PIL.Image.Image", np.ndarray]  # an array is uint8, (height, width, 3), RGB
Pixels = UInt8[np.ndarray, "height width 3"]
Values = Float[np.ndarray, "height width 3"]
RGB = tuple[float, float, float]
Resolution = int | tuple[int, int]  # pixels of a side, or (height, width)
HEIF = (".heic", ".heif", ".hif")
MAX_PIXELS = 100_000_000  # limit for a resized picture; only images of extreme aspect ratios reach it


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a model family: resize, crop from the centre, normalise.

    Attributes:
      resize: "small side" keeps the aspect ratio, "squash" does not, "none" only crops.
      filter: "area" and "bilinear" are those of `tf.image.resize` (bilinear without antialiasing, half-pixel centres),
        truncated to uint8 as in big_vision; the others are Pillow's, with antialiasing except for "pil-nearest".
      resize_to: side in pixels after resizing, or (height, width). With "small side", a number is the length of the
        smaller side, and the resized image covers a pair. At another resolution, `resize_to` and `crop` are scaled.
      crop: side in pixels of the square that is cropped, which the model sees; or (height, width).
      mean, std: mean and standard deviation per colour, for values in 0..1; the model takes (value - mean) / std.
    """

    resize: Literal["small side", "squash", "none"]
    filter: Filter
    resize_to: Resolution
    crop: Resolution
    mean: RGB
    std: RGB


HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # 0..1 to -1..1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

PRESETS = {
    # the evaluation in Google's own code
    "bigvision-small-crop": Preprocess("small side", "area", 256, 224, *HALF),
    "augreg-384": Preprocess("small side", "area", 448, 384, *HALF),
    "flexivit": Preprocess("small side", "area", 272, 240, *HALF),
    "flexivit-i1k": Preprocess("squash", "bilinear", 272, 240, *HALF),  # models trained on ImageNet-1k only
    "squash": Preprocess("squash", "bilinear", 224, 224, *HALF),
    # the image processors of transformers; mean and std of dino, deit and mae are those of their training
    "hf-vit": Preprocess("squash", "pil-bilinear", 224, 224, *HALF),
    "hf-dino": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
    "hf-dinov2": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
    "hf-clip": Preprocess("small side", "pil-bicubic", 224, 224, *CLIP),
    "hf-deit": Preprocess("squash", "pil-bicubic", 256, 224, *IMAGENET),  # its image processor resizes to 256 x 256
    "hf-siglip": Preprocess("squash", "pil-bicubic", 224, 224, *HALF),
    "hf-mae": Preprocess("squash", "pil-bilinear", 224, 224, *IMAGENET),
    "hf-ijepa": Preprocess("squash", "pil-bilinear", 224, 224, *HALF),
    # Google's tips/scenic: pixels in 0..1, resized by `jax.image.resize`, whose values are not rounded to 8 bits
    "tips": Preprocess("squash", "pil-bilinear", 448, 448, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # C-RADIO normalises the pixels itself
    "radio": Preprocess("squash", "pil-bicubic", 224, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # microsoft/SimMIM, data_finetune.py; torchvision may crop one pixel further if a margin is odd
    "simmim": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
}


def preprocess(image: Photograph, preset: Preprocess, resolution: Resolution | None = None) -> Values:
    """The input of the model in float32: `picture`, then `normalise`."""
    return normalise(picture(image, preset, resolution), preset)


def normalise(
    pixels: UInt8[np.ndarray, "*batch height width 3"], preset: Preprocess
) -> Float[np.ndarray, "*batch height width 3"]:
    """Converts pixels 0..255 of one or several images to the range of the model, in float32."""
    return ((pixels / 255 - np.asarray(preset.mean)) / np.asarray(preset.std)).astype(np.float32)


def picture(image: Photograph, preset: Preprocess, resolution: Resolution | None = None) -> Pixels:
    """The pixels that the model sees, in RGB, before normalisation.

    Args:
      image: a Pillow image of any mode and size, or a uint8 array (height, width, 3).
      preset: one of `PRESETS`, or the result of `from_processor_config`.
      resolution: side in pixels, or (height, width); by default the crop of the preset. At another aspect ratio, the
        crop is taken from the smallest resized picture that covers it, with the same relative margins.

    Raises:
      QkjaxError: the array is not uint8 RGB, the image is smaller than the crop and is not resized, or its aspect ratio
        is too extreme.
    """
    crop = side_lengths(preset, resolution)
    pixels = image if isinstance(image, np.ndarray) else np.asarray(to_rgb(image, "the image"))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise QkjaxError(
            f"the image is a {pixels.dtype} array of shape {pixels.shape}: expected uint8 of shape (height, width, 3)"
        )
    height, width = _resized_shape(pixels.shape[:2], preset, crop)
    if not (0 < crop[0] <= height and 0 < crop[1] <= width):
        raise QkjaxError(
            f"cannot crop {crop[1]} x {crop[0]} pixels from {width} x {height} (width x height); "
            "choose another resolution"
        )
    resized = pixels if (height, width) == pixels.shape[:2] else resize(pixels, (height, width), preset.filter)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return resized[top : top + crop[0], left : left + crop[1]].copy()


def source_pixels(
    shape: tuple[int, int], preset: Preprocess, resolution: Resolution | None = None
) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "columns"]]:
    """For each row and column of the result of `picture`, the nearest row and column of an image of shape `shape`.

    They resample maps of labels, which cannot be averaged.
    """
    crop, indices = side_lengths(preset, resolution), []
    for old, new, side in zip(shape, _resized_shape(shape, preset, crop), crop, strict=True):
        first = (new - side) // 2
        indices.append(((np.arange(side) + first + 0.5) * old / new).astype(int).clip(0, old - 1))
    return indices[0], indices[1]


def side_lengths(preset: Preprocess, resolution: Resolution | None) -> tuple[int, int]:
    """(height, width) of the result of `picture`."""
    return pair(preset.crop if resolution is None else resolution)


def pair(size: Resolution) -> tuple[int, int]:
    """(height, width) of a size, which may be the side of a square."""
    return (size, size) if isinstance(size, int) else size


def _resized_shape(shape: tuple[int, ...], preset: Preprocess, crop: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after resizing.

    One side is fitted to its target. The other is rounded down for Pillow's filters, as in transformers, and otherwise
    to the nearest, as in big_vision and for pairs in timm.
    """
    sizes = zip(pair(preset.resize_to), crop, pair(preset.crop), strict=True)
    target = tuple(round(whole * side / cropped) for whole, side, cropped in sizes)
    if preset.resize != "small side":
        return (target[0], target[1]) if preset.resize == "squash" else (shape[0], shape[1])
    fitted = max((0, 1), key=lambda axis: target[axis] / shape[axis])  # the other side then covers its target
    if not preset.filter.startswith("pil"):
        factor = np.float32(target[fitted]) / np.float32(shape[fitted])  # in float32, as in big_vision
        height, width = (int(np.rint(np.float32(side) * factor)) for side in shape)
    elif isinstance(preset.resize_to, int):
        height, width = (target[fitted] * side // shape[fitted] for side in shape)
    else:
        height, width = (round(side / (shape[fitted] / target[fitted])) for side in shape)
    if height * width > MAX_PIXELS:
        raise QkjaxError(f"an image of {shape[1]} x {shape[0]} pixels is too long a strip to resize; crop it first")
    return height, width


def open_image(file: str | Path | IOBase, name: str | None = None) -> "PIL.Image.Image":
    """Opens a photograph in RGB, upright according to its EXIF orientation; the first frame of an animation.

    Transparent pixels are blended with white, as in transformers and most viewers, since their colours are arbitrary.
    16-bit gray is scaled to 8 bits, whereas Pillow would clip it to white. HEIC needs pillow-heif.

    Args:
      file: path of the image, or an open file.
      name: name of the image in errors; by default the path.

    Raises:
      QkjaxError: the file does not exist, is not a complete image, exceeds Pillow's size limit, or has float pixels.
    """
    from PIL import Image, ImageOps

    # Suppresses warnings about odd metadata of readable images. The filter is permanent, because Python's temporary
    # warning filters are not thread-safe: concurrent decoders would share the filter, and it could persist anyway.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    name = name or str(file)
    try:
        with _opened(file) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise ValueError(f"{image.width} x {image.height} pixels are more than Pillow's limit")
            scale_transparency(image)
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's readers raise errors of many types
        # The error may contain the repr of an open file, with a memory address; the name replaces it.
        reason = str(error).replace(repr(str(file)), repr(name)).replace(str(file), name)
        remedy = "check it, or save it as PNG or JPEG"
        if name.lower().endswith(HEIF) and not _register_heif():
            remedy = "HEIC needs pillow-heif: pip install 'qkjax[photographs]'"
        raise QkjaxError(f"cannot read image {name}: {reason}; {remedy}") from error
    return to_rgb(upright, name)


def _opened(file: str | Path | IOBase) -> "PIL.Image.Image":
    """The image before decoding. If Pillow does not know its format, it is tried as HEIC, whatever its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not _register_heif():
            raise
        return Image.open(file)


@cache
def _register_heif() -> bool:
    """Whether Pillow can read HEIC, through pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
