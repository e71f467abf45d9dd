"""Reads the facts in the config.json of a transformers model that the shapes of its parameters do not determine.

A model type is in one of the tables because its mathematics is known. Every key of a configuration is used, determined
by the parameters, harmless, or an error.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qkjax.errors import QkjaxError
from qkjax.vit.config import check_settings
from qkjax.weights.families import huggingface_keys as keys
from qkjax.weights.families.facts import ROTARY, Facts, Grid, height_and_width

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


class Kind(NamedTuple):
    """Defaults of a configuration class of transformers, for values that files may omit."""

    heads: int = 12
    activation: str = "gelu"
    norm_eps: float = 1e-12
    image: int | tuple[int, int] = 224
    patch: int = 16


CLIP = Kind(12, "quick_gelu", 1e-5, 224, 32)
SIGLIP = Kind(12, "gelu_pytorch_tanh", 1e-6, 224, 16)
BLIP_2 = Kind(16, "gelu", 1e-6, 224, 14)
KINDS = {
    "vit": Kind(),
    "deit": Kind(),
    "ijepa": Kind(),
    "beit": Kind(),
    "data2vec-vision": Kind(),
    "vit_mae": Kind(),
    "vit_msn": Kind(norm_eps=1e-6),
    "dpt": Kind(image=384),
    "dinov2": Kind(norm_eps=1e-6, patch=14),
    "dinov2_with_registers": Kind(norm_eps=1e-6),
    "tipsv2_vision_model": Kind(norm_eps=1e-6, image=448, patch=14),
    "clip_vision_model": CLIP,
    "metaclip_2_vision_model": CLIP,
    "clipseg_vision_model": CLIP,
    "chinese_clip_vision_model": CLIP,
    "altclip_vision_model": CLIP,
    "git_vision_model": Kind(12, "quick_gelu", 1e-5, 224, 16),
    "owlvit_vision_model": Kind(12, "quick_gelu", 1e-5, 768, 32),
    "owlv2_vision_model": Kind(12, "quick_gelu", 1e-5, 768, 16),
    "siglip_vision_model": SIGLIP,
    "siglip2_vision_model": SIGLIP,
    "idefics2_vision": Kind(12, "gelu_pytorch_tanh", 1e-6, 224, 32),
    "idefics3_vision": Kind(16, "gelu_pytorch_tanh", 1e-6, 224, 32),
    "blip_vision_model": Kind(12, "gelu", 1e-5, 384, 16),
    "blip_2_vision_model": BLIP_2,
    "instructblip_vision_model": BLIP_2,
    "aimv2_vision_model": Kind(8, "silu", 1e-5, 224, 14),
    "internvl_vision": Kind(16, "gelu", 1e-6, 448, 14),
}
WEIGHTS_ONLY = {
    "yolos": "detection tokens follow its patches, and middle layers add position embeddings",
    "eomt": "its last layers take query tokens, too",
    "sam_vision_model": "its attention has windows and decomposed relative positions",
    "vitdet": "its attention has windows",
    "seggpt": "its attention has decomposed relative positions, and it joins two images",
    "audio-spectrogram-transformer": "its patches overlap",
    "videomae": "its patches are those of a video",
    "vivit": "its patches are those of a video",
}
"""Model types that qkjax cannot run, and why. It reads only their queries and keys; their defaults are `Kind()`."""
TWICE = "the output is the class token after one norm; the pooled output of this model applies its last norm twice"
OUTPUTS = {
    "aimv2_vision_model": "the output is the mean of the patches; this model's attention pooling is left out",
    "blip_vision_model": TWICE,
    "blip_2_vision_model": TWICE,
    "instructblip_vision_model": TWICE,
}
"""Models whose own output differs from ours, though their tokens and attention are the same."""
NAMED_ROTARY = re.compile(r"dinov3|pixtral|mlcd|llama4|qwen|rope|sam3|eva02|perception|moonvit|ernie|glm|vjepa")


def facts_of(config: Mapping) -> Facts:
    """The facts in a configuration of transformers.

    Raises:
      QkjaxError: the model has rotary position embeddings or an unknown activation, a key is unknown, or a value has
        the wrong type.
    """
    kind, values = _vision_part(config)
    _check_keys(kind, config, values)
    default = KINDS.get(kind, Kind())
    settings = {"heads": values.get("num_attention_heads", default.heads), "norm_eps": _eps(values, default)}
    notes = [OUTPUTS[kind]] if kind in OUTPUTS else []
    if kind in ("beit", "data2vec-vision", "internvl_vision"):
        settings["final_norm"] = not values.get("use_mean_pooling", True)
    if kind == "aimv2_vision_model" or values.get("norm_type") == "rms_norm":
        settings["norm"] = "rms"
    if kind == "siglip2_vision_model":  # NaFlex
        settings["posemb_resample"] = "bilinear_antialias"
    if kind not in WEIGHTS_ONLY:
        settings["activation"] = _activation(values, default)
    if kind not in KINDS and kind not in WEIGHTS_ONLY:  # an unknown class has no known defaults
        notes.append(f"model type {kind!r} is unknown: read as a plain ViT, which its parameters fit")
        settings = {name: value for name, value in settings.items() if _is_stated(name, values)}
    if pruned := {str(layer): heads for layer, heads in (values.get("pruned_heads") or {}).items() if heads}:
        settings["heads"] = _remaining_heads(settings.get("heads", default.heads), pruned, values)
    width = values.get("hidden_size")
    whole = values.get("num_attention_heads", default.heads)
    head_dim = width // whole if isinstance(width, int) and isinstance(whole, int) and whole > 0 else None
    return Facts(
        check_settings(settings) | ({"weights_only": WEIGHTS_ONLY[kind]} if kind in WEIGHTS_ONLY else {}),
        head_dim=head_dim,
        grids=_grids(values, default),
        patch_size=height_and_width(values.get("patch_size", default.patch)),
        foreign_head=_foreign_head(config),
        complete=kind in KINDS,
        stated_sizes=_stated_sizes(kind, values),
        notes=tuple(notes),
    )


def _stated_sizes(kind: str, values: Mapping) -> dict[str, int | tuple[int, ...]]:
    """The sizes in a configuration that the shapes of the parameters show, too. DINOv2 has `mlp_ratio` instead of an
    intermediate size."""
    names = ("hidden_size", "num_hidden_layers", *(() if kind.startswith("dinov2") else ("intermediate_size",)))
    sizes = {name: values[name] for name in names if type(values.get(name)) is int}
    pairs = {name: height_and_width(values.get(name)) for name in ("patch_size", "image_size")}
    return sizes | {name: pair for name, pair in pairs.items() if pair}


def _vision_part(config: Mapping) -> tuple[str, dict]:
    """The model type and the configuration of the image model."""
    kind = str(config.get("model_type"))
    parts = [config[name] for name in ("vision_config", "vision_config_dict") if isinstance(config.get(name), Mapping)]
    inner = {name: value for part in parts for name, value in part.items()}
    if not inner:
        return kind, dict(config)
    return str(inner.get("model_type") or kind.replace("-", "_") + "_vision_model"), inner


def _check_keys(kind: str, config: Mapping, values: Mapping) -> None:
    if config.get("quantization_config") or values.get("quantization_config"):
        raise QkjaxError("config.json has quantised weights: dequantise the model first (transformers' dequantize)")
    if NAMED_ROTARY.search(kind) or any(name.startswith("rope") and value for name, value in values.items()):
        raise QkjaxError(f"config.json is for {kind}: {ROTARY}")
    for name, value in values.items():
        if name in keys.STOP and value not in (None, False, keys.STOP[name].harmless):
            raise QkjaxError(f"config.json has {name}={value!r}: {keys.STOP[name].reason}")
    if kind in WEIGHTS_ONLY:
        return
    known = keys.KNOWN | keys.STOP.keys()
    unknown = [n for n, v in values.items() if n not in known and not keys.HARMLESS.search(n) and v not in keys.EMPTY]
    if unknown:
        what = f"config.json is for {kind}" + ("" if kind in KINDS else ", an unknown model type,")
        raise QkjaxError(
            f"{what} and has {unknown[0]}={str(values[unknown[0]])[:60]}, an unknown key: remove it if it does not "
            "change the image model"
        )


def _is_stated(setting: str, values: Mapping) -> bool:
    """Whether the configuration has a value for a setting, so that it is not a default of its class."""
    names = {"heads": ("num_attention_heads",), "norm_eps": ("layer_norm_eps", "rms_norm_eps"),
             "activation": ("hidden_act", "use_swiglu_ffn")}  # fmt: skip
    return setting not in names or any(name in values for name in names[setting])


def _eps(values: Mapping, default: Kind) -> Any:
    return values.get("layer_norm_eps", values.get("rms_norm_eps", default.norm_eps))


def _activation(values: Mapping, default: Kind) -> str:
    name = values.get("hidden_act", default.activation)
    if values.get("use_swiglu_ffn") or name == "silu":
        return "swiglu"
    if str(name) not in ACTIVATIONS:
        raise QkjaxError(f"config.json has activation {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(name)]


def _remaining_heads(heads: int, pruned: Mapping[str, list], values: Mapping) -> int:
    """The number of heads per layer after pruning.

    Raises:
      QkjaxError: the layers have different numbers of heads.
    """
    counts = {len(pruned.get(str(layer), ())) for layer in range(int(values.get("num_hidden_layers", 12)))}
    if len(counts) > 1:
        raise QkjaxError("config.json has layers with different numbers of pruned heads: expected the same in all")
    return heads - counts.pop()


def _grids(values: Mapping, default: Kind) -> tuple[Grid, ...]:
    patches = values.get("num_patches")
    if isinstance(patches, int) and "image_size" not in values:
        side = round(patches**0.5)
        return ((side, side),) if side * side == patches else ()
    size, patch = (
        height_and_width(values.get("image_size", default.image)),
        height_and_width(values.get("patch_size", default.patch)),
    )
    return ((size[0] // patch[0], size[1] // patch[1]),) if size and patch else ()


def _foreign_head(config: Mapping) -> str:
    """Why the classifier is not a dense layer on the pooled token, from the name of the model's class; "" if it is."""
    classes = " ".join(map(str, config.get("architectures") or ()))
    if re.search(r"(CLIP|Siglip\w*|MetaClip\w*)ForImageClassification", classes):
        return "it takes the mean of the patches, before the last LayerNorm"
    return ""
