"""What the config.json of a timm repository says: an architecture's name, and how its images are prepared."""

import re
from collections.abc import Mapping
from math import floor

from qkjax.images.preprocess import Preprocess

TANH = r"(base_patch32|so400m_patch16|giantopt_patch16)_siglip|large_patch16_siglip(_gap)?_512"
"""The SigLIPs that timm gives GELU by tanh; the others have the exact one there, though trained with tanh."""


def settings_of(config: Mapping) -> dict:
    """Parts of `ViTConfig` that follow from an architecture's name; timm antialiases position embeddings.

    OpenAI's CLIP goes by names with and without "quickgelu"; the notes say that it was trained with that.
    """
    name, notes = str(config["architecture"]), str(_pretrained(config).get("notes", ""))
    settings = {"posemb_resample": "bicubic_antialias"}
    if "quickgelu" in (name + notes).lower():
        return settings | {"activation": "quick_gelu"}
    if re.search(TANH, name):
        return settings | {"activation": "gelu_tanh"}
    # Where the tree alone would be taken for OpenAI's CLIP or Google's SigLIP.
    return settings | ({"activation": "gelu"} if re.search("clip|siglip|_map_", name) else {})


def preprocess_of(config: Mapping) -> Preprocess | None:
    """How timm evaluates the model; None where it is not said, or is what a `Preprocess` cannot hold."""
    said = _pretrained(config)
    try:
        _, height, width = said["input_size"]
        resize = {"center": "small side", "squash": "squash"}[said.get("crop_mode") or "center"]
        filter = {"bicubic": "pil-bicubic", "bilinear": "pil-bilinear"}[said["interpolation"]]
        mean, std = (tuple(float(x) for x in said[key]) for key in ("mean", "std"))
        resize_to = floor(height / said["crop_pct"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    fits = type(height) is int and 0 < height == width <= resize_to and len(mean) == len(std) == 3 and 0 not in std
    return Preprocess(resize, filter, resize_to, height, mean, std) if fits else None


def _pretrained(config: Mapping) -> Mapping:
    """The part about the weights; old files have it at the top."""
    inner = config.get("pretrained_cfg", config)
    return inner if isinstance(inner, Mapping) else {}
