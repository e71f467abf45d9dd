"""Reads from the config.json of a transformers model the facts that the shapes of its parameters do not determine.

The tables of `huggingface_kinds` list the model types that qkjax can run. Each key of a configuration belongs to one of
four groups: qkjax uses the key, the parameters determine its effect, the key is harmless, or the key raises an error.
"""

import re
from collections.abc import Mapping
from typing import Any

from qkjax.errors import QkjaxError
from qkjax.vit.config import check_settings
from qkjax.weights.families import huggingface_keys as keys
from qkjax.weights.families.facts import ROTARY, Facts, Grid, height_and_width
from qkjax.weights.families.huggingface_kinds import KINDS, OUTPUTS, REFUSED, WEIGHTS_ONLY, WEIGHTS_ONLY_KINDS, Kind
from qkjax.weights.families.huggingface_layouts import (
    NO_FINAL_NORM,
    OWN_KEYS,
    SEVERAL_STACKS,
    layout_of,
    resampling,
    usual_keys,
)
from qkjax.weights.families.huggingface_rotary import rotation_of

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


NAMED_ROTARY = re.compile(r"dinov3|pixtral|mlcd|llama4|qwen|rope|sam3|eva02|perception|moonvit|ernie|glm|vjepa")


def facts_of(config: Mapping) -> Facts:
    """The facts in a config.json of transformers.

    Raises:
      QkjaxError: the model has rotary position embeddings or an unknown activation, a key is unknown, or a value has
        the wrong type.
    """
    kind, values = _vision_part(config)
    _check_keys(kind, config, values)
    default = (WEIGHTS_ONLY_KINDS if kind in WEIGHTS_ONLY else KINDS).get(kind, Kind())
    settings, notes = _settings(kind, values, default), [OUTPUTS[kind]] if kind in OUTPUTS else []
    if kind not in KINDS and kind not in WEIGHTS_ONLY:  # the defaults of an unknown class are not known
        notes.append(f"model type {kind!r} is unknown; qkjax reads it as a plain ViT, since its parameters fit one")
        settings = {name: value for name, value in settings.items() if _is_stated(name, values)}
    if pruned := {str(layer): heads for layer, heads in (values.get("pruned_heads") or {}).items() if heads}:
        settings["heads"] = _remaining_heads(settings.get("heads", default.heads), pruned, values)
    width = values.get("hidden_size")
    whole = values.get("num_attention_heads", default.heads)
    head_dim = width // whole if isinstance(width, int) and isinstance(whole, int) and whole > 0 else None
    return Facts(
        check_settings(settings) | ({"weights_only": WEIGHTS_ONLY[kind]} if kind in WEIGHTS_ONLY else {}),
        head_dim=values.get("head_dim") or head_dim,
        grids=_grids(values, default),
        patch_size=height_and_width(values.get("patch_size", default.patch)),
        foreign_head=_foreign_head(config),
        complete=kind in KINDS,
        layout=layout_of(kind, values),
        stated_sizes=_stated_sizes(kind, values),
        notes=tuple(notes),
    )


def _settings(kind: str, values: Mapping, default: Kind) -> dict:
    """The fields of `ViTConfig` that the parameters do not determine."""
    settings = {"heads": values.get("num_attention_heads", default.heads), "norm_eps": _eps(values, default)}
    if kind in ("beit", "data2vec-vision", "internvl_vision", "qianfan_ocr_vision"):
        settings["final_norm"] = not values.get("use_mean_pooling", True)
    if kind in NO_FINAL_NORM:
        settings["final_norm"] = False
    if kind in ("aimv2_vision_model", "ovis2_vision") or values.get("norm_type") == "rms_norm":
        settings["norm"] = "rms"
    if resample := resampling(kind, values):
        settings["posemb_resample"] = resample
    if rotary := rotation_of(kind, values):
        settings |= {"rotary": rotary, "pool": "tok"}
    if kind == "sam3_vit_model":
        layers = values.get("global_attn_indexes")
        settings |= {"window": values.get("window_size", 24), "pool": "gap",
                     "global_layers": (7, 15, 23, 31) if layers is None else layers}  # fmt: skip
    if kind not in WEIGHTS_ONLY:
        settings["activation"] = _activation(values, default)
    return settings


def _stated_sizes(kind: str, values: Mapping) -> dict[str, int | tuple[int, ...]]:
    """The sizes in a configuration that the shapes of the parameters also determine.

    DINOv2's configuration has `mlp_ratio` instead of an intermediate size. Models with stages or with two transformers
    have more layers than `num_hidden_layers`.
    """
    omitted = {"intermediate_size"} if kind.startswith("dinov2") else set()
    omitted |= {"num_hidden_layers"} if kind in SEVERAL_STACKS else set()
    names = [name for name in ("hidden_size", "num_hidden_layers", "intermediate_size") if name not in omitted]
    sizes = {name: values[name] for name in names if type(values.get(name)) is int}
    pairs = {name: height_and_width(values.get(name)) for name in ("patch_size", "image_size")}
    return sizes | {name: pair for name, pair in pairs.items() if pair}


def _vision_part(config: Mapping) -> tuple[str, dict]:
    """The model type and the configuration of the image model. Keys are renamed to those that most model types have."""
    kind = str(config.get("model_type"))
    if kind == "sam3_video" and isinstance(config.get("detector_config"), Mapping):
        return _vision_part(config["detector_config"])
    if kind == "flava" and isinstance(config.get("image_config"), Mapping):
        return "flava_image_model", dict(config["image_config"])
    parts = [config[name] for name in ("vision_config", "vision_config_dict") if isinstance(config.get(name), Mapping)]
    inner = {name: value for part in parts for name, value in part.items()}
    if not inner:
        own = _backbone(config)
        kind = str(own.get("model_type"))
        return kind, usual_keys(kind, own)
    inner = _backbone(inner)
    kind = _image_type(str(inner.get("model_type") or kind.replace("-", "_") + "_vision_model"))
    return kind, usual_keys(kind, inner)


def _backbone(config: Mapping) -> Mapping:
    """The configuration of the transformer inside SAM 3's image encoder, which also has a neck."""
    inner = config.get("backbone_config")
    own = str(config.get("model_type")) in ("sam3_vision_model", "sam3_tracker_vision_model")
    return inner if own and isinstance(inner, Mapping) else config


def _image_type(kind: str) -> str:
    """The type of an image model. Older files state the type of the whole model, such as "idefics2"."""
    names = (kind, kind.removesuffix("_model"), f"{kind}_vision", f"{kind}_vision_model")
    return next((name for name in names if name in KINDS or name in WEIGHTS_ONLY or name in REFUSED), kind)


def _check_keys(kind: str, config: Mapping, values: Mapping) -> None:
    if config.get("quantization_config") or values.get("quantization_config"):
        raise QkjaxError("config.json states quantised weights: dequantise the model first (transformers' dequantize)")
    if kind in REFUSED:
        raise QkjaxError(f"config.json is for {kind}: {REFUSED[kind]}")
    named = NAMED_ROTARY.search(kind) and kind not in KINDS and kind not in WEIGHTS_ONLY
    stated = any(name.startswith("rope") and value for name, value in values.items())
    if named or (stated and kind not in KINDS and kind not in WEIGHTS_ONLY):
        raise QkjaxError(f"config.json is for {kind}: {ROTARY}")
    for name, value in values.items():
        if name in keys.STOP and value not in (None, False, keys.STOP[name].harmless):
            if kind in WEIGHTS_ONLY and name in keys.IN_MLP:
                continue
            raise QkjaxError(f"config.json has {name}={value!r}: {keys.STOP[name].reason}")
    if kind in WEIGHTS_ONLY:
        return
    known = keys.KNOWN | keys.STOP.keys()
    known |= OWN_KEYS.get(kind, set())
    unknown = [n for n, v in values.items() if n not in known and not keys.HARMLESS.search(n) and v not in keys.EMPTY]
    if unknown:
        what = f"config.json is for {kind}" + ("" if kind in KINDS else ", an unknown model type,")
        raise QkjaxError(
            f"{what} and has {unknown[0]}={str(values[unknown[0]])[:60]}, an unknown key: remove this key if it does "
            "not affect the image model"
        )


def _is_stated(setting: str, values: Mapping) -> bool:
    """Whether the configuration states a value for a setting. Otherwise the setting is the default of the class."""
    names = {"heads": ("num_attention_heads",), "norm_eps": ("layer_norm_eps", "rms_norm_eps"),
             "activation": ("hidden_act", "use_swiglu_ffn")}  # fmt: skip
    return setting not in names or any(name in values for name in names[setting])


def _eps(values: Mapping, default: Kind) -> Any:
    return values.get("layer_norm_eps", values.get("rms_norm_eps", default.norm_eps))


def _activation(values: Mapping, default: Kind) -> str:
    name = values.get("hidden_act", default.activation)
    gated = values.get("use_gated_mlp")
    if gated is None and (values.get("use_swiglu_ffn") or name == "silu"):
        return "swiglu"
    if gated and name != "silu":
        raise QkjaxError(f"config.json has use_gated_mlp={gated} with activation {name!r}, expected 'silu'")
    if gated:
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
        raise QkjaxError("config.json has layers with different numbers of pruned heads: expected equal numbers")
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
    """The reason why the classifier is not a dense layer on the pooled token, or "" if it is such a layer."""
    classes = " ".join(map(str, config.get("architectures") or ()))
    if re.search(r"(CLIP|Siglip\w*|MetaClip\w*)ForImageClassification", classes):
        return "its input is the mean of the patches before the last LayerNorm"
    return ""
