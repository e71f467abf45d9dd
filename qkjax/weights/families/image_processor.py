"""Converts the image processor of a Hugging Face repository to a `Preprocess`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import CLIP, HALF, IMAGENET, RGB, Preprocess, Resolution, pair
from qkjax.weights.families.stated import StatedPreprocess, as_side, joined

# Defaults of the image processor classes of transformers. `default_to_square`: whether one number as size means a
# square.
_KEYS = ("size", "default_to_square", "do_center_crop", "crop_size", "resample", "image_mean", "image_std")
_CLASSES = {
    "ViT": (224, True, False, None, 2, *HALF),
    "DeiT": (256, True, True, 224, 3, *HALF),
    "CLIP": (224, False, True, 224, 3, *CLIP),
    "ChineseCLIP": (224, False, True, 224, 3, *CLIP),
    "Bit": (224, False, True, 224, 3, *CLIP),
    "Siglip": ({"height": 224, "width": 224}, False, False, None, 3, *HALF),
    "DINOv3ViT": (224, True, False, None, 2, *IMAGENET),
    "Beit": (224, True, False, 224, 3, *HALF),
    "Blip": (384, True, False, None, 3, *CLIP),
    "Flava": (224, True, True, 224, 3, *CLIP),
    "OwlViT": (768, True, False, 768, 3, *CLIP),
    "Pvt": (224, True, False, None, 3, *IMAGENET),
    "Segformer": (512, True, False, None, 2, *IMAGENET),
    "Sam3": ({"height": 1008, "width": 1008}, True, False, None, 2, *HALF),
    "MobileNetV1": ({"shortest_edge": 256}, False, True, 224, 2, *HALF),
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels"}
_FILTERS = ("pil-nearest", "pil-lanczos", "pil-bilinear", "pil-bicubic", "pil-box", "pil-hamming")
"""The index of a filter in this list is Pillow's number for the filter."""
FILE = "preprocessor_config.json"


class _Size(NamedTuple):
    """How images are resized: the method, and the number of pixels of a side or (height, width)."""

    resize: str
    pixels: Resolution


def from_processor_config(config: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that a preprocessor_config.json specifies, in transformers' old or new format.

    Raises:
      QkjaxError: a class, step, size or filter is unknown, a key is missing, or the images have no fixed size.
    """
    try:
        stated = stated_by_processor(config)
        if not stated.unfollowed:
            return Preprocess(**stated.fields)
    except QkjaxError as error:
        raise QkjaxError(f"{FILE} has {error}") from error
    raise QkjaxError(f"{FILE} {stated.unfollowed[0]}; correct the file, or pass your own `Preprocess`")


def stated_by_processor(config: Mapping[str, Any], file: str = FILE) -> StatedPreprocess:
    """The parts of a `Preprocess` that an image processor of transformers states, and messages on all other parts."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    name = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(kind or ""))
    values = dict(zip(_KEYS, _CLASSES.get(name, ()), strict=False))
    values |= {key: value for key, value in config.items() if value is not None}
    if values.get("use_square_size") and name == "CLIP":
        values["size"] = 224  # as in transformers, for any size
        values["default_to_square"] = True
    clauses = [f"has the unknown class {kind}"] if kind and name not in _CLASSES else []
    steps = {key for key, value in values.items() if str(key).startswith("do_") and value} - _STEPS
    clauses += [f"has {step}=true, which is not supported" for step in sorted(steps)]
    fields, unclear = _geometry(values)
    clauses += unclear
    resample = values.get("resample")
    if isinstance(resample, int) and 0 <= resample < len(_FILTERS):  # Pillow's enumeration is also an int
        fields["filter"] = _FILTERS[resample]
    else:
        clauses.append(f"has resample={resample!r} (expected one of Pillow's filters, 0 to 5)")
    if scale := _mean_std(values):
        fields["mean"], fields["std"] = scale
    else:
        clauses.append("has no usable image_mean, image_std and rescale_factor")
    return StatedPreprocess(file, fields, tuple(clauses))


def _geometry(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """How images are resized and cropped, and a message on each part that qkjax does not know or follow.

    If only the crop is known, it is the only field; another source determines the margin around the crop.
    """
    resizes, crops = values.get("do_resize", True), values.get("do_center_crop", False)
    size, clauses = _size(values, "size", not values.get("default_to_square", True)) if resizes else (None, [])
    crop, more = _size(values, "crop_size", False) if crops else (None, [])
    clauses = [*clauses, *more]
    if not resizes and crop:
        return {"resize": "none", "resize_to": crop.pixels, "crop": crop.pixels}, clauses
    if not size:
        nothing = [] if resizes or crops else ["has do_resize=false and no crop, so its images have no fixed size"]
        return {"crop": crop.pixels} if crop else {}, clauses + nothing
    if not crop:
        if size.resize == "small side" and not crops:
            clauses.append(f"has size={values['size']} and no crop, so its images have no fixed size")
        return {"resize": size.resize, "resize_to": size.pixels, "crop": size.pixels}, clauses
    sides = [(max(a, b), a < b) for a, b in zip(pair(size.pixels), pair(crop.pixels), strict=True)]
    resize_to = size.pixels
    if any(small for _, small in sides):
        clauses.append(f"has crop_size={values['crop_size']} larger than size={values['size']}, which would pad images")
        largest = max(side for side, _ in sides)
        resize_to = largest if size.resize == "small side" else joined(*(side for side, _ in sides))
    return {"resize": size.resize, "resize_to": resize_to, "crop": crop.pixels}, clauses


def _size(values: Mapping[str, Any], key: str, short: bool) -> tuple[_Size | None, list[str]]:
    """A size, and a message if qkjax does not know or follow the size.

    Args:
      short: whether one number means the length of the smaller side, rather than the side of a square.
    """
    size = values.get(key)
    unknown = f"has {key}={size} (expected a number, a shortest_edge, or a height and a width)"
    if isinstance(size, Mapping):
        given = {name: value for name, value in size.items() if value is not None}
        sides = [given.get("height"), given.get("width")] if given.keys() == {"height", "width"} else None
        sides = [given["shortest_edge"]] if "shortest_edge" in given else sides
        short = "shortest_edge" in given
        clauses = [f"has {key}={size}, of which qkjax uses only shortest_edge"] if short and len(given) > 1 else []
    else:
        sides, clauses = size if isinstance(size, list | tuple) and len(size) == 2 else [size], []
    if not sides or not all(map(as_side, sides)):
        return None, [unknown]
    return _Size("small side" if short and len(sides) == 1 else "squash", joined(sides[0], sides[-1])), clauses


def _mean_std(values: Mapping[str, Any]) -> tuple[RGB, RGB] | None:
    """The mean and the standard deviation for pixel values in 0..1; None if they are missing or have a different type.

    The values in the file, which may have any rescale_factor, are converted.

    Raises:
      QkjaxError: the factor is zero, or a number is out of range. `Preprocess` rejects other impossible numbers.
    """
    try:
        mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize", True) else (0, 1)
        factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
        scale = round(255 * factor, 9)  # exactly 1 for the usual 1/255
        mean, std = (tuple(x / scale for x in np.broadcast_to(colour, 3).tolist()) for colour in (mean, std))
    except (KeyError, TypeError, ValueError):
        return None
    except (ZeroDivisionError, OverflowError) as error:
        raise QkjaxError(
            f"impossible values of image_mean, image_std or rescale_factor ({error}); correct the file"
        ) from error
    return mean, std
