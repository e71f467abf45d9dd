"""Reads the config.json of a timm repository: activation, resampling, preprocessing."""

import re
from collections.abc import Mapping
from math import floor

from qkjax.images.preprocess import Preprocess

TANH = r"(base_patch32|so400m_patch16|giantopt_patch16)_siglip|large_patch16_siglip(_gap)?_512"
"""SigLIP models for which timm uses the tanh approximation of GELU. It uses exact GELU for the others, although
they were trained with the approximation."""


def settings_of(config: Mapping) -> dict:
    """Parts of `ViTConfig` that follow from an architecture's name; timm antialiases position embeddings.

    The names of OpenAI's CLIP may lack "quickgelu", which it was trained with; the notes of config.json mention it.
    """
    name, notes = str(config["architecture"]), str(_pretrained(config).get("notes", ""))
    settings = {"posemb_resample": "bicubic_antialias"}
    if "quickgelu" in (name + notes).lower():
        return settings | {"activation": "quick_gelu"}
    if re.search(TANH, name):
        return settings | {"activation": "gelu_tanh"}
    # Without this, the parameters would be taken for those of OpenAI's CLIP or Google's SigLIP.
    return settings | ({"activation": "gelu"} if re.search("clip|siglip|_map_", name) else {})


def preprocess_of(config: Mapping) -> Preprocess | None:
    """The preprocessing of timm's evaluation; None if it is missing or `Preprocess` cannot express it."""
    values = _pretrained(config)
    try:
        _, height, width = values["input_size"]
        resize = {"center": "small side", "squash": "squash"}[values.get("crop_mode") or "center"]
        filter = {"bicubic": "pil-bicubic", "bilinear": "pil-bilinear"}[values["interpolation"]]
        mean, std = (tuple(float(x) for x in values[key]) for key in ("mean", "std"))
        resize_to = floor(height / values["crop_pct"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    fits = type(height) is int and 0 < height == width <= resize_to and len(mean) == len(std) == 3 and 0 not in std
    return Preprocess(resize, filter, resize_to, height, mean, std) if fits else None


def _pretrained(config: Mapping) -> Mapping:
    """The part about the weights; old files have it at the top level."""
    inner = config.get("pretrained_cfg", config)
    return inner if isinstance(inner, Mapping) else {}
