"""Reads the config.json of a timm repository: the architecture, its arguments, and the preprocessing."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from math import floor

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import IMAGENET
from qkjax.vit.config import check_settings
from qkjax.weights.families import timm_rotary
from qkjax.weights.families.facts import Facts, Grid, from_module_facts, height_and_width
from qkjax.weights.families.stated import StatedPreprocess, as_side, colours, joined
from qkjax.weights.families.timm_module import POOLS

USED = {
    "img_size",
    "num_heads",
    "global_pool",
    "act_layer",
    "pool_include_prefix",
    "no_embed_class",
    "patch_size",
    "attn_pool_num_heads",
    *timm_rotary.ARGUMENTS,
}
VISIBLE = {"depth", "embed_dim", "mlp_ratio", "num_classes", "in_chans", "qkv_bias", "proj_bias", "init_values",
           "class_token", "reg_tokens", "num_reg_tokens", "swiglu_mlp", "swiglu_align_to", "pre_norm", "fc_norm",
           "final_norm", "scale_attn_norm", "scale_mlp_norm", "use_abs_pos_emb", "use_rel_pos_bias",
           "use_shared_rel_pos_bias", "qkv_fused", "features_only", "attn_pool_mlp_ratio"}  # fmt: skip
"""Arguments of timm's models whose effect the parameters determine."""
HARMLESS = re.compile(
    r"drop|^dynamic_img|weight_init|fix_init|^out_indices|^pretrained|^strict_|^script|^export|"
    r"^rope_(?:shift|jitter|rescale)_coords"  # random changes of positions in training
)
ASSUMED = {"activation": "gelu", "norm_eps": 1e-6}
"""timm's defaults, which apply to an architecture whose name is unknown."""
DEFAULTS = {"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic",
            "mean": IMAGENET[0], "std": IMAGENET[1]}  # fmt: skip
"""timm's default preprocessing for evaluation."""
FILTERS = ("bicubic", "bilinear", "lanczos", "box", "hamming", "nearest")
CROP_MODES = {"center": "small side", "squash": "squash"}
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
"""Names of activations that timm and qkjax share."""


@cache
def architectures() -> dict[str, dict]:
    """A dict from the name of every ViT architecture in timm to the result of `timm_module.facts_of`."""
    return json.loads(files(__package__).joinpath("timm_architectures.json").read_text())


def facts_of(config: Mapping) -> Facts:
    """The facts about an architecture of timm, including the arguments that config.json changes.

    OpenAI's CLIP was trained with QuickGELU. If the architecture's name lacks "quickgelu", the notes in config.json
    contain it.

    Raises:
      QkjaxError: the architecture's heads have no single matrix Wq Wk^T, or an argument is unknown.
    """
    name, pretrained = str(config["architecture"]), _pretrained(config)
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise QkjaxError(f"config.json has model_args={arguments!r}, expected an object")
    known = architectures().get(name.partition(".")[0])
    if known is None and re.search(r"eva02|dinov3|lingbot|sapiens|rope|_pe_", name):
        known = {"refused": "its name suggests that the model has rotary positions"}
    if known is not None and "refused" in known:
        raise QkjaxError(f"config.json is for timm's {name}: {known['refused']}")
    facts = {**(known or ASSUMED), **_changed(arguments)}
    facts |= timm_rotary.changed(facts.get("rotary"), arguments)
    if "global_pool" in config and "global_pool" not in arguments and "weights_only" not in facts:
        facts |= _pool(str(config["global_pool"]))
    if "quickgelu" in (name + str(pretrained.get("notes", ""))).lower():
        facts["activation"] = "quick_gelu"
    result = from_module_facts(facts)
    listed = ", ".join(f"{key}={facts[key]!r}" for key in ASSUMED if key in facts)
    notes = (
        ()
        if known
        else (
            f"timm's {name} is unknown; qkjax reads the model as a plain ViT, because its parameters fit one, and "
            f"assumes {listed}",
        )
    )
    grids = dict.fromkeys([*_grids(arguments, pretrained, facts), *result.grids])
    settings = {"posemb_resample": "bicubic_antialias", **result.settings}
    return replace(result, settings=settings, grids=tuple(grids), complete=known is not None, notes=notes)


def _changed(arguments: Mapping) -> dict:
    """The facts that a model's arguments in config.json change.

    Raises:
      QkjaxError: an argument is unknown.
    """
    for name, value in arguments.items():
        if name not in USED | VISIBLE and not HARMLESS.search(name) and value not in (None, False):
            raise QkjaxError(
                f"config.json has {name}={value!r}, an unknown argument: remove it if the model is a plain ViT"
            )
    facts = _pool(str(arguments["global_pool"])) if "global_pool" in arguments else {}
    if "embed_dim" in arguments:
        facts["head_dim"] = None
    if (heads := arguments.get("num_heads")) is not None:
        facts |= check_settings({"heads": heads}) | {"head_dim": None}
    if (heads := arguments.get("attn_pool_num_heads")) is not None:
        facts["pool_heads"] = check_settings({"heads": heads})["heads"]
    if "no_embed_class" in arguments:
        facts["prefix_positions"] = not arguments["no_embed_class"]
    if "pool_include_prefix" in arguments:
        facts["pool_prefix"] = bool(arguments["pool_include_prefix"])
    if (act := arguments.get("act_layer")) is not None:
        if act not in ACTIVATIONS:
            raise QkjaxError(f"config.json has act_layer={act!r}, expected one of {', '.join(ACTIVATIONS)}")
        facts["activation"] = act
    return facts


def _pool(name: str) -> dict:
    if name not in POOLS:
        raise QkjaxError(f"config.json has global_pool={name!r}, expected one of {', '.join(map(repr, POOLS))}")
    return {"pool": POOLS[name]}


def _grids(arguments: Mapping, pretrained: Mapping, facts: Mapping) -> list[Grid]:
    """The grids of patches that result from the image sizes in config.json."""
    side = arguments.get("patch_size", facts.get("patch_size"))
    sizes = [arguments.get("img_size"), (pretrained.get("input_size") or (None,))[-2:]]
    if odd := [size for size in (side, *sizes) if not isinstance(size, int | list | tuple | None)]:
        raise TypeError(f"a size is {odd[0]!r}")
    patch, whole = height_and_width(side), [pair for pair in map(height_and_width, sizes) if pair]
    return [(height // patch[0], width // patch[1]) for height, width in whole] if patch else []


def preprocess_of(config: Mapping) -> StatedPreprocess | None:
    """The preprocessing for evaluation that timm's config.json states; None if it states none.

    For missing values, timm's defaults apply.
    """
    values = {key: value for key, value in _pretrained(config).items() if key in DEFAULTS and value}
    if not values:
        return None
    values = DEFAULTS | values
    fields, clauses = _geometry(values)
    if values["interpolation"] in FILTERS:
        fields["filter"] = f"pil-{values['interpolation']}"
    else:
        clauses.append(f"has interpolation={values['interpolation']!r} (expected one of {', '.join(FILTERS)})")
    mean, std = colours(values["mean"]), colours(values["std"])
    if mean and std:
        fields |= {"mean": mean, "std": std}
    else:
        clauses.append("has no usable mean and std")
    return StatedPreprocess("config.json", fields, tuple(clauses))


def _geometry(values: Mapping) -> tuple[dict, list[str]]:
    """How images are resized and cropped, and a message on each part that qkjax does not know or follow."""
    size, share, mode = values["input_size"], values["crop_pct"], values["crop_mode"]
    sides = size[1:] if isinstance(size, list | tuple) and len(size) == 3 else []
    if not sides or not all(map(as_side, sides)):
        return {}, [f"has input_size={size} (expected channels, height and width)"]
    clauses = []
    if mode not in list(CROP_MODES):  # compared with a list, because the values may not be hashable
        clauses.append(f"has crop_mode={mode!r}, which is not supported (qkjax crops images as with 'center')")
    if type(share) not in (int, float) or not 0 < share <= 1:
        clauses.append(f"has crop_pct={share!r} (expected a number up to 1; qkjax assumes 1)")
        share = 1
    fields = {"resize": CROP_MODES.get(mode, "small side") if isinstance(mode, str) else "small side"}
    return fields | {"resize_to": joined(*(floor(side / share) for side in sides)), "crop": joined(*sides)}, clauses


def _pretrained(config: Mapping) -> Mapping:
    """The section of config.json about the pretrained weights. In old files, this section is the top level."""
    inner = config.get("pretrained_cfg", config)
    return inner if isinstance(inner, Mapping) else {}
