"""Converts photographs to the input of a model.

The functions open, resize, crop and normalise photographs as the reference code of the model's family does.
"""

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import Literal, Union, get_args

import numpy as np
from jaxtyping import Float, Int, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.decode import opened, register_heif
from qkjax.images.limits import LARGEST, MAX_LENGTH, Resolution, check_colours, check_sides, pair
from qkjax.images.memory import ENLARGED, PIXELS
from qkjax.images.resize import Filter, region, resize
from qkjax.images.rgb import scale_transparency, to_rgb

# Pillow is imported where it is needed, so that importing this module stays light.
Photograph = Union["PIL.Image.Image", np.ndarray]  # an array is uint8, (height, width, 3), RGB
Pixels = UInt8[np.ndarray, "height width 3"]
Values = Float[np.ndarray, "height width 3"]
RGB = tuple[float, float, float]
HEIF = (".heic", ".heif", ".hif")
HEAVY = ("WEBP", "JPEG2000", "AVIF", "HEIF")  # formats whose decoders need more than 8 bytes per pixel
Resize = Literal["small side", "squash", "none"]
MAX_PIXELS = 100_000_000  # limit for the size of a resized picture, which only images with extreme aspect ratios reach
ENLARGEMENT = 1 << 24  # largest number of pixels by which all threads together may enlarge images at the same time


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a model family, which consists of three steps: resize, crop from the centre, normalise.

    Attributes:
      resize: "small side" resizes the image and keeps its aspect ratio; "squash" resizes the image to `resize_to` and
        does not keep its aspect ratio; "none" does not resize the image.
      filter: resampling filter. "area" and "bilinear" are the filters of `tf.image.resize` (bilinear without
        antialiasing, half-pixel centres), truncated to uint8 as in big_vision. Names that start with "pil-" are
        Pillow's filters, with antialiasing except for "pil-nearest".
      resize_to: side in pixels after resizing, or (height, width). With "small side", one number is the length of the
        smaller side, and two numbers are the (height, width) that the resized image must at least cover. If a different
        resolution is requested, `resize_to` and `crop` are scaled.
      crop: side in pixels of the central square that the model sees, or (height, width).
      mean, std: mean and standard deviation of each colour channel, for values from 0 to 1. The model takes
        (value - mean) / std.

    Raises:
      QkjaxError: a side is not a whole number of pixels from 1 to `MAX_SIDE`, the crop is larger than the resized
        picture, or a mean or a standard deviation has an impossible value.
    """

    resize: Resize
    filter: Filter
    resize_to: Resolution
    crop: Resolution
    mean: RGB
    std: RGB

    def __post_init__(self):
        for name, choices in (("resize", get_args(Resize)), ("filter", get_args(Filter))):
            if getattr(self, name) not in choices:
                raise QkjaxError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name in ("resize_to", "crop"):
            check_sides(name, getattr(self, name))
        if self.resize != "none" and any(map(operator.gt, pair(self.crop), pair(self.resize_to))):
            raise QkjaxError(f"crop={self.crop} is larger than resize_to={self.resize_to}: expected at most that size")
        check_colours("mean", self.mean, -LARGEST, LARGEST)
        check_colours("std", self.std, 1 / LARGEST, LARGEST)


HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # 0..1 to -1..1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

PRESETS = {
    # as in the evaluation code that Google published
    "bigvision-small-crop": Preprocess("small side", "area", 256, 224, *HALF),
    "augreg-384": Preprocess("small side", "area", 448, 384, *HALF),
    "flexivit": Preprocess("small side", "area", 272, 240, *HALF),
    "flexivit-i1k": Preprocess("squash", "bilinear", 272, 240, *HALF),  # models that were trained only on ImageNet-1k
    "squash": Preprocess("squash", "bilinear", 224, 224, *HALF),
    # as in the image processors of transformers; for dino, deit and mae, mean and std are those of their training code
    "hf-vit": Preprocess("squash", "pil-bilinear", 224, 224, *HALF),
    "hf-dino": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
    "hf-dinov2": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
    "hf-clip": Preprocess("small side", "pil-bicubic", 224, 224, *CLIP),
    "hf-deit": Preprocess("squash", "pil-bicubic", 256, 224, *IMAGENET),  # its image processor resizes to 256 x 256
    "hf-siglip": Preprocess("squash", "pil-bicubic", 224, 224, *HALF),
    "hf-mae": Preprocess("squash", "pil-bilinear", 224, 224, *IMAGENET),
    "hf-dinov3": Preprocess("squash", "pil-bilinear", 224, 224, *IMAGENET),
    "hf-dinov3-sat": Preprocess("squash", "pil-bilinear", 224, 224, (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "hf-ijepa": Preprocess("squash", "pil-bilinear", 224, 224, *HALF),
    # as in timm's evaluation transforms of DINOv3, Perception Encoder and EVA-02
    "timm-imagenet": Preprocess("small side", "pil-bicubic", 224, 224, *IMAGENET),
    "timm-half": Preprocess("small side", "pil-bicubic", 224, 224, *HALF),
    "eva02": Preprocess("small side", "pil-bicubic", 248, 224, *CLIP),
    # Google's tips/scenic: pixels in 0..1, resized with `jax.image.resize`, which does not round values to 8 bits
    "tips": Preprocess("squash", "pil-bilinear", 448, 448, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # the C-RADIO model itself normalises the pixels
    "radio": Preprocess("squash", "pil-bicubic", 224, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # microsoft/SimMIM, data_finetune.py; torchvision may crop one pixel further if a margin is odd
    "simmim": Preprocess("small side", "pil-bicubic", 256, 224, *IMAGENET),
}


def preprocess(image: Photograph, preset: Preprocess, resolution: Resolution | None = None) -> Values:
    """Converts a photograph to the input of the model in float32: applies `picture`, then `normalise`."""
    return normalise(picture(image, preset, resolution), preset)


def normalise(
    pixels: UInt8[np.ndarray, "*batch height width 3"], preset: Preprocess
) -> Float[np.ndarray, "*batch height width 3"]:
    """Converts the pixel values of one or more images from 0..255 to the float32 values that the model expects."""
    return ((pixels / 255 - np.asarray(preset.mean)) / np.asarray(preset.std)).astype(np.float32)


def picture(
    image: Photograph, preset: Preprocess, resolution: Resolution | None = None, filter: Filter | None = None
) -> Pixels:
    """The pixels that the model sees, in RGB, before normalisation.

    Args:
      image: a Pillow image of any mode and size, or a uint8 array (height, width, 3).
      preset: one of `PRESETS`, or the result of `from_processor_config`.
      resolution: side in pixels, or (height, width); by default the crop of the preset. If its aspect ratio differs
        from that of the preset, the image is resized so that it just covers the crop and the preset's relative margins.
      filter: resampling filter, by default that of the preset. The size of the resized image does not depend on it.

    Raises:
      QkjaxError: the array is not uint8 RGB, the image is smaller than the crop and the preset does not resize, or the
        aspect ratio of the image is too extreme.
    """
    crop = side_lengths(preset, resolution)
    is_array = isinstance(image, np.ndarray)
    shape, dtype = (image.shape, image.dtype) if is_array else ((image.height, image.width, 3), np.dtype(np.uint8))
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise QkjaxError(f"the image is a {dtype} array of shape {shape}: expected uint8 of shape (height, width, 3)")
    height, width = _resized_shape(shape[:2], preset, crop)
    if not (0 < crop[0] <= height and 0 < crop[1] <= width):
        raise QkjaxError(
            f"cannot crop {crop[1]} x {crop[0]} pixels from {width} x {height} (width x height); "
            "choose another resolution"
        )
    pixels = image if is_array else to_rgb(image, "the image")
    box = ((height - crop[0]) // 2, (width - crop[1]) // 2, *crop)
    if (height, width) == shape[:2]:
        return region(pixels, *box).copy()
    with ENLARGED if height * width > shape[0] * shape[1] + ENLARGEMENT else nullcontext():
        return resize(pixels, (height, width), filter or preset.filter, box)


def source_pixels(
    shape: tuple[int, int], preset: Preprocess, resolution: Resolution | None = None
) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "columns"]]:
    """For each row and column in the result of `picture`, the nearest row and column in the original image.

    The original image has the shape `shape`. The indices are used to resample maps of labels, because labels cannot be
    averaged.
    """
    crop, indices = side_lengths(preset, resolution), []
    for old, new, side in zip(shape, _resized_shape(shape, preset, crop), crop, strict=True):
        first = (new - side) // 2
        indices.append(((np.arange(side) + first + 0.5) * old / new).astype(int).clip(0, old - 1))
    return indices[0], indices[1]


def side_lengths(preset: Preprocess, resolution: Resolution | None) -> tuple[int, int]:
    """Height and width of the result of `picture`."""
    return pair(preset.crop if resolution is None else resolution)


def _resized_shape(shape: tuple[int, ...], preset: Preprocess, crop: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image after resizing.

    With "small side", one side has exactly its target length, and the length of the other side is rounded. If the
    filter is one of Pillow's and `resize_to` is a number, that length is rounded down, as in transformers. In all other
    cases, that length is rounded to the nearest integer, as in big_vision and timm.
    """
    sizes = zip(pair(preset.resize_to), crop, pair(preset.crop), strict=True)
    target = tuple(round(whole * side / cropped) for whole, side, cropped in sizes)
    if preset.resize == "none":
        return shape[0], shape[1]
    if preset.resize == "squash":
        return _checked(shape, target)
    fitted = max((0, 1), key=lambda axis: target[axis] / shape[axis])  # the second side then covers its target
    if not preset.filter.startswith("pil"):
        factor = np.float32(target[fitted]) / np.float32(shape[fitted])  # in float32, as in big_vision
        return _checked(shape, [int(np.rint(np.float32(side) * factor)) for side in shape])
    if isinstance(preset.resize_to, int):
        return _checked(shape, [target[fitted] * side // shape[fitted] for side in shape])
    return _checked(shape, [round(side / (shape[fitted] / target[fitted])) for side in shape])


def _checked(shape: tuple[int, ...], resized: Sequence[int]) -> tuple[int, int]:
    """Checks the size of a resized image, and of Pillow's intermediate image (old height, new width)."""
    height, width = resized
    if max(height, shape[0]) * width > MAX_PIXELS or max(shape) > MAX_LENGTH:
        raise QkjaxError(
            f"an image of {shape[1]} x {shape[0]} pixels is too elongated: expected at most {MAX_LENGTH} pixels per "
            f"side and {MAX_PIXELS} pixels in total after resizing; crop the image first"
        )
    return height, width


def open_image(file: str | Path | IOBase, name: str | None = None, most: int | None = None) -> "PIL.Image.Image":
    """Opens a photograph in RGB, rotated upright according to its EXIF orientation.

    For an animation, only the first frame is read. Transparent pixels are blended with white, as in transformers and
    most viewers, because their colours are arbitrary. 16-bit grey values are scaled to 8 bits (Pillow would clip them
    to white). HEIC files need the package pillow-heif.

    Args:
      file: path of the image, or an open file.
      name: name of the image in error messages; by default the path.
      most: largest number of pixels, in addition to the limit of `check_pixels`.

    Raises:
      QkjaxError: the file does not exist, is not a complete image, has too many pixels, or has float pixels.
    """
    from PIL import ImageOps

    name = name or str(file)
    try:
        with opened(file, most) as image:
            PIXELS.take(image.width * image.height * (2 if image.format in HEAVY else 1))
            scale_transparency(image)
            image.load()
            if image.mode == "P" and image.palette is None:  # Pillow would make it black
                raise ValueError("its pixels are numbers of colours in a palette, but it has no palette")
            upright = ImageOps.exif_transpose(image)  # this is always a new image
        del image  # so that its memory is free before the next conversion
    except Exception as error:  # Pillow's readers raise many types of errors
        # The error may contain the repr of an open file, which has a memory address; the name replaces the repr.
        reason = str(error).replace(repr(str(file)), repr(name)).replace(str(file), name)
        remedy = "check the file, or save the image as PNG or JPEG"
        if name.lower().endswith(HEIF) and not register_heif():
            remedy = "HEIC files need the package pillow-heif: pip install 'qkjax[photographs]'"
        raise QkjaxError(f"cannot read image {name}: {reason}; {remedy}") from error
    return to_rgb(upright, name)
