"""The preprocessing of a checkpoint's images, from its folder, the catalogue or its architecture, in this order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import PRESETS, Preprocess
from qkjax.vit.config import ViTConfig
from qkjax.weights.catalogue import Entry
from qkjax.weights.families import timm
from qkjax.weights.families.image_processor import from_processor_config
from qkjax.weights.formats.json_object import read_json


def from_folder(folder: Path) -> Preprocess | None:
    """Preprocessing from a folder's preprocessor_config.json, or from timm's config.json; None if both are missing
    or `Preprocess` cannot express it.

    Raises:
      QkjaxError: a file does not hold a JSON object.
    """
    processor, config = folder / "preprocessor_config.json", folder / "config.json"
    if processor.is_file():
        values = read_json(processor)
        try:
            return from_processor_config(values)
        except QkjaxError:
            return None
    return timm.preprocess_of(read_json(config)) if config.is_file() else None


def from_json(text: str) -> Preprocess:
    """The `Preprocess` that an npz file of qkjax stores as JSON.

    Raises:
      QkjaxError: the text is not a valid `Preprocess`.
    """
    try:
        preset = Preprocess(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()})
        sides = 0 < preset.crop <= preset.resize_to or preset.resize == "none"
        colours = [float(x) for values in (preset.mean, preset.std) for x in values]
        known = all(
            getattr(preset, name) in get_args(Preprocess.__annotations__[name]) for name in ("resize", "filter")
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise QkjaxError(f"its preprocessing is damaged ({error}); download or save the file again") from error
    if not (sides and known and len(colours) == 6 and all(colours[3:]) and type(preset.crop) is int):
        raise QkjaxError(f"its preprocessing {preset} is invalid; download or save the file again")
    return preset


def from_entry(entry: Entry) -> Preprocess | None:
    """Preprocessing from the catalogue; None for a repository of the hub that is not in it."""
    return with_resolution(PRESETS[entry.preprocess], entry.resolution) if entry.preprocess in PRESETS else None


def from_architecture(config: ViTConfig) -> Preprocess:
    """The preset of the family that the architecture belongs to, at the resolution of its position embedding."""
    preset = PRESETS[_family(config)]
    height, width = (n * size for n, size in zip(config.grid or (0, 0), config.patch_size, strict=True))
    # DINOv2's grid is for 518 pixels, the resolution at the end of its training; it is evaluated at 224.
    return (
        preset if height != width or not height or preset is PRESETS["hf-dinov2"] else with_resolution(preset, height)
    )


def with_resolution(preset: Preprocess, resolution: int) -> Preprocess:
    """The preset for images of `resolution` x `resolution` pixels; the margin that is cropped scales with it."""
    return replace(preset, crop=resolution, resize_to=round(preset.resize_to * resolution / preset.crop))


def _family(config: ViTConfig) -> str:
    """The name of a preset. Google's models are recognised by the resampling of position embeddings."""
    if config.posemb_resample == "linear":
        return "squash" if config.pool == "map" else "bigvision-small-crop"
    traits = {
        "hf-clip": config.pre_norm,
        "hf-siglip": config.pool == "map",
        "simmim": config.relative_positions,
        "hf-dinov2": config.layer_scale,
        "hf-deit": config.registers == 1,
    }
    return next((name for name, has in traits.items() if has), "hf-vit")
