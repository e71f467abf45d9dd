"""Converts the preprocessor_config.json of a Hugging Face repository to a `Preprocess`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import CLIP, HALF, IMAGENET, RGB, Preprocess

# Defaults of the classes of transformers. `default_to_square`: whether a size that is one number means a square.
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
    """The preprocessing that a preprocessor_config.json specifies, in the old or the new format.

    Raises:
      QkjaxError: a class, step, size or filter is unknown; a key is missing; or the images are not square.
    """
    try:
        return _read(config)
    except TypeError as error:  # a list instead of a string or a number
        raise _unknown(f"holds a value of the wrong type ({error})") from error


def _read(config: Mapping[str, Any]) -> Preprocess:
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    name = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind or "")
    if kind and name not in _CLASSES:
        raise _unknown(f"has the class {kind}; expected one of {', '.join(_CLASSES)}")
    values = dict(zip(_KEYS, _CLASSES.get(name, ()), strict=False))
    values |= {key: value for key, value in config.items() if value is not None}
    steps = {key for key, value in values.items() if key.startswith("do_") and value} - _STEPS
    if steps:
        raise _unknown(f"has {min(steps)}=true, which is not supported")
    crop = _side(values, "crop_size")[0] if values.get("do_center_crop") else None
    resize_to, square = _side(values, "size") if values.get("do_resize", True) else (crop, False)
    if not (crop or square) or (crop or 0) > resize_to:
        raise _unknown("produces images that are not square, or pads them")
    resize = "none" if not values.get("do_resize", True) else "squash" if square else "small side"
    filters = {2: "pil-bilinear", 3: "pil-bicubic"}
    if values.get("resample") not in filters:
        raise _unknown(f"has resample={values.get('resample')}; expected 2 (bilinear) or 3 (bicubic)")
    return Preprocess(resize, filters[values["resample"]], resize_to, crop or resize_to, *_mean_std(values))


def _unknown(what: str) -> QkjaxError:
    return QkjaxError(f"preprocessor_config.json {what}; correct it, or pass your own `Preprocess`")


def _side(values: Mapping[str, Any], key: str) -> tuple[int, bool]:
    """A length in pixels, and whether it is the side of a square rather than the short side."""
    size, square = values.get(key), key == "crop_size" or values.get("default_to_square", True)
    if isinstance(size, Mapping):
        given = {k: v for k, v in size.items() if v is not None}
        square = given.keys() == {"height", "width"} and given["height"] == given["width"]
        size = next(iter(given.values())) if square or given.keys() == {"shortest_edge"} else None
    if not isinstance(size, int) or size < 1:
        raise _unknown(f"has {key}={values.get(key)}; expected a number, a shortest_edge, or a square")
    return size, square


def _mean_std(values: Mapping[str, Any]) -> tuple[RGB, RGB]:
    """Mean and standard deviation for values in 0..1, for any rescale_factor."""
    try:
        mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize", True) else (0, 1)
        factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
        scale = round(255 * factor, 9)  # exactly 1 for the usual 1/255
        mean, std = (tuple(float(x) / scale for x in np.broadcast_to(colour, 3)) for colour in (mean, std))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _unknown("has no usable image_mean, image_std and rescale_factor") from error
    return mean, std
