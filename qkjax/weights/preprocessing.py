"""Determines a checkpoint's preprocessing from its folder, the catalogue or its architecture, in this order."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import PRESETS, Preprocess, Resolution, pair
from qkjax.runtime import parsed
from qkjax.vit.config import ViTConfig
from qkjax.weights.catalogue import Entry
from qkjax.weights.families import open_clip, timm
from qkjax.weights.families.image_processor import FILE, stated_by_processor
from qkjax.weights.families.stated import StatedPreprocess, joined, missing_fields
from qkjax.weights.formats.json_object import read_json


def from_folder(folder: Path) -> StatedPreprocess | None:
    """The preprocessing that the files in a folder state, or None.

    The function reads the image processor in processor_config.json, preprocessor_config.json, timm's config.json, and
    open_clip_config.json. The function uses the first of these files that states how images are preprocessed;
    transformers uses the same order.

    Raises:
      QkjaxError: a file does not contain a JSON object.
    """
    nested, processor, config = (folder / n for n in ("processor_config.json", FILE, "config.json"))
    inner = read_json(nested).get("image_processor") if nested.is_file() else None
    if isinstance(inner, Mapping):
        return stated_by_processor(inner, nested.name)
    if processor.is_file():
        return stated_by_processor(read_json(processor))
    stated, of_open_clip = (
        timm.preprocess_of(read_json(config)) if config.is_file() else None,
        folder / open_clip.CONFIG,
    )
    return open_clip.preprocess_of(read_json(of_open_clip)) if not stated and of_open_clip.is_file() else stated


def resolve(
    stated: StatedPreprocess | None, from_catalogue: Preprocess | None, config: ViTConfig
) -> tuple[Preprocess, tuple[str, ...]]:
    """The preprocessing of a checkpoint, and sentences that state what qkjax assumed.

    Args:
      stated: the preprocessing that a file states, which takes precedence.
      from_catalogue: the preprocessing in the catalogue, or None. The preprocessing in the catalogue takes precedence
        over the architecture's preprocessing.
      config: the architecture.

    Raises:
      QkjaxError: the file states impossible values.
    """
    source = "the catalogue" if from_catalogue else f"the preset {_family(config)!r}, assumed from the architecture"
    fallback = from_catalogue or from_architecture(config)
    if not stated:
        assumed = from_catalogue is None and not config.weights_only
        return fallback, (f"no file states the preprocessing, so qkjax uses {source}",) if assumed else ()
    missing = missing_fields(stated)
    if "crop" in stated.fields and "resize_to" in missing:
        fallback = with_resolution(fallback, stated.fields["crop"])
    try:
        preprocess = replace(fallback, **stated.fields)
    except QkjaxError as error:
        raise QkjaxError(f"{stated.file} has {error}; correct the file") from error
    if not stated.unfollowed:
        return preprocess, ()
    rest = f"; {', '.join(missing)} from {source}" if missing else ""
    note = f"qkjax follows {stated.file} only partly: the file {', and '.join(stated.unfollowed)}{rest}"
    return preprocess, (note,)


def from_json(text: str) -> Preprocess:
    """Converts the JSON in an npz file of qkjax to a `Preprocess`.

    Raises:
      QkjaxError: the text is not a valid `Preprocess`.
    """
    try:
        return Preprocess(**{k: tuple(v) if isinstance(v, list) else v for k, v in parsed.from_json(text).items()})
    except (ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise QkjaxError(
            f"its preprocessing settings are damaged ({reason}); download or save the file again"
        ) from error
    except QkjaxError as error:
        raise QkjaxError(f"its preprocessing settings are damaged: {error}; download or save the file again") from error


def from_entry(entry: Entry) -> Preprocess | None:
    """The preprocessing in the catalogue, or None for a hub repository that is not in the catalogue."""
    return with_resolution(PRESETS[entry.preprocess], entry.resolution) if entry.preprocess in PRESETS else None


def from_architecture(config: ViTConfig) -> Preprocess:
    """The preset of the architecture's family, at the resolution of the position embedding."""
    preset = PRESETS[_family(config)]
    height, width = (n * size for n, size in zip(config.grid or (0, 0), config.patch_size, strict=True))
    # DINOv2's grid is for 518 pixels, the resolution at the end of training, but DINOv2 is evaluated at 224 pixels.
    # TIPS is evaluated at 448 pixels for any grid. SAM 3 repeats its position embedding, which is for 336 pixels.
    keeps_size = _family(config) in ("hf-dinov2", "tips", "radio", "hf-sam3")
    return preset if height != width or not height or keeps_size else with_resolution(preset, height)


def with_resolution(preset: Preprocess, resolution: Resolution) -> Preprocess:
    """The preset for images of `resolution` pixels. The margin that is cropped scales with the resolution."""
    sizes = zip(pair(preset.resize_to), pair(resolution), pair(preset.crop), strict=True)
    height, width = (round(whole * side / cropped) for whole, side, cropped in sizes)
    return replace(preset, crop=resolution, resize_to=joined(height, width))


def _family(config: ViTConfig) -> str:
    """The name of an architecture's preset. Google's models are recognised by how they resample positions."""
    if config.rotary is not None and config.rotary.coordinates == "centred":
        return "hf-dinov3"
    if config.posemb_resample == "linear":
        return "squash" if config.pool == "map" else "bigvision-small-crop"
    traits = {
        "hf-sam3": config.posemb_resample == "tile",
        "hf-clip": config.pre_norm,
        "hf-siglip": config.pool == "map",
        "tips": config.posemb_resample == "bilinear_antialias" and config.class_token,
        "radio": config.posemb_resample == "bilinear_crop",
        "simmim": config.relative_positions,
        "hf-dinov2": config.layer_scale,
        "hf-deit": config.registers == 1,
    }
    return next((name for name, has in traits.items() if has), "hf-vit")
