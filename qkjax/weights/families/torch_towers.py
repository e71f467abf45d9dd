"""Finds the image model's parameters in a torch file that may also contain other towers or models, or adapters."""

import re
from collections.abc import Collection

from qkjax.errors import QkjaxError

TOWER = re.compile(r"(?:^|\.)(?:visual|vision_model|vision_tower|image_encoder|vision_encoder|image_model)\.")
"""Prefixes of the names of the image model's parameters in a file that also contains a text model."""
PAIRS = ("teacher", "student", "model", "model_ema", "module_ema", "ema", "base_encoder", "momentum_encoder",
         "online", "target_encoder", "context_encoder", "encoder", "predictor")  # fmt: skip
"""First parts of parameter names by which training code distinguishes several models in one file."""
LAYER = re.compile(r"(?:layers?|blocks|resblocks|predictor_blocks)\.\d+\.")
ADAPTER = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|hada_w\d_[ab]|base_layer|ia3_l)\b")
QUANTISED = re.compile(
    r"\.(?:SCB|absmax|quant_map|nested_absmax|quant_state\.\w+|qweight|qzeros|weight_format)(?:\.|$)"
)
PLURAL = 2


def split_models(names: Collection[str]) -> dict[str, dict[str, str]]:
    """Separates the models in a file, such as teacher and student, by the first part of the parameters' names.

    Returns:
      For each model, a dict from names without the first part to full names. The key of a single model is "".
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        first, _, rest = name.removeprefix("module.").partition(".")
        groups.setdefault(first, {})[rest] = name
    models = {first: group for first, group in groups.items() if first in PAIRS and any(map(LAYER.search, group))}
    return models if len(models) >= PLURAL else {"": {name: name for name in names}}


def image_tower(names: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of the image model's parameters, and a note on all other parameters.

    Raises:
      QkjaxError: the weights are quantised, or the file contains an adapter.
    """
    if adapter := next((name for name in names if ADAPTER.search(name)), None):
        raise QkjaxError(
            f"{adapter!r} belongs to an adapter (LoRA): merge it with its base model first (peft's merge_and_unload)"
        )
    if quantised := next((name for name in names if QUANTISED.search(name)), None):
        raise QkjaxError(
            f"{quantised!r} belongs to quantised weights: dequantise the model first (transformers' dequantize)"
        )
    inside = [name for name in names if TOWER.search(name)]
    if trunk := [name for name in inside if "visual.trunk." in name]:  # open_clip, whose file also has a projection
        inside = trunk
    outside = sorted({_top(name) for name in set(names) - set(inside)})
    if not inside or not any(map(LAYER.search, inside)):
        return list(names), []
    return inside, [f"left out, because they are not part of the image model: {', '.join(outside)}"] if outside else []


def _top(name: str) -> str:
    return name.removeprefix("module.").removeprefix("model.").split(".")[0]
