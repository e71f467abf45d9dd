"""Converts state dicts of torch models (Hugging Face, timm, Meta) to big_vision's tree.

Linear weights are (out, in) in torch; here they are (in, out) and split into heads.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from math import isqrt

import numpy as np

from qkjax.errors import QkjaxError, nearest
from qkjax.vit.config import ViTConfig
from qkjax.weights.families.architecture import check_shapes, infer_config
from qkjax.weights.families.big_vision_names import BLOCK
from qkjax.weights.families.torch_names import ATTENTION, our_name

HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Number of heads by width, for widths of which all published ViTs have the same number."""


def to_vit(
    keys: Iterable[str], read: Callable[[str], np.ndarray], settings: Mapping
) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    """The architecture and the checked flat canonical arrays of a state dict.

    Args:
      keys: names of its parameters.
      read: returns the array of a name.
      settings: parts of `ViTConfig` that are given; the rest is inferred, or the default of the family.

    Raises:
      QkjaxError: see `to_tree`, `infer_config` and `check_shapes`.
    """
    flat = to_tree(keys, read, settings.get("heads"))
    shapes = {name: array.shape for name, array in flat.items()}
    config = infer_config(shapes, {**defaults(shapes), **settings})
    check_shapes(shapes, config)
    return config, flat


def to_tree(keys: Iterable[str], read: Callable[[str], np.ndarray], heads: int | None) -> dict[str, np.ndarray]:
    """Reads a state dict into flat canonical arrays, one at a time.

    Args:
      keys: names of its parameters.
      read: returns the array of a name.
      heads: number of attention heads; if None, that of `HEADS` for the width.

    Raises:
      QkjaxError: an unknown name, a missing part, or a number of heads that does not divide the width.
    """
    named = {key: ours for key in sorted(keys) if (ours := our_name(key)) is not None}
    first = {ours: key for key, ours in reversed(named.items())}
    if second := next((key for key, ours in named.items() if first[ours] != key), None):
        raise QkjaxError(
            f"both {first[named[second]]!r} and {second!r} are {named[second]!r}: the file holds two models"
        )
    flat = {ours: read(key) for key, ours in named.items()}
    if "embedding/kernel" not in flat:
        raise QkjaxError(f"no patch embedding among the parameters{nearest('patch_embed.proj.weight', named)}")
    is_predictor = any("predictor_embed" in key for key in named)
    kernel = flat["embedding/kernel"]
    if kernel.ndim != (2 if is_predictor else 4):
        raise QkjaxError(
            f"the patch embedding has shape {kernel.shape}: expected a convolution; NaFlex ViTs are not supported"
        )
    flat["embedding/kernel"] = kernel.T[None, None] if is_predictor else kernel.transpose(2, 3, 1, 0)
    width = kernel.shape[0]
    heads = heads or (None if is_predictor else HEADS.get(width))
    if heads is None:
        raise QkjaxError(f"the number of heads is unknown for width {width}: pass heads=...")
    if width % heads:
        raise QkjaxError(f"{heads} heads do not divide the width {width}: pass heads=..., or correct config.json")
    _split_fused(flat, width)
    _join_gated(flat)
    _fill_missing_biases(flat, width)
    _share_relative_bias(flat)
    _fold_prefix_positions(flat, width)
    _drop_foreign_head(flat, width)
    return {name: _oriented(name, array, heads) for name, array in flat.items()}


def _drop_foreign_head(flat: dict[str, np.ndarray], width: int) -> None:
    """Removes classifiers that are not plain heads: DINOv2's takes the class token concatenated with the mean of the
    patches, those of CLIP and SigLIP in transformers the mean of the patches."""
    head = flat.get("head/kernel")
    if head is None or head.ndim != 2:
        return
    if head.shape[1] == 2 * width or "MAPHead_0/probe" in flat or "pre_norm/scale" in flat:
        flat.pop("head/kernel"), flat.pop("head/bias", None)


def _split_fused(flat: dict[str, np.ndarray], width: int) -> None:
    """Splits fused weights: query, key and value of layers, and key and value of timm's pooling."""
    for name in [n for n in flat if "/qkv/" in n or "/kv/" in n]:
        fused, parts = flat.pop(name), ("query", "key", "value") if "/qkv/" in name else ("key", "value")
        if fused.ndim == 0 or fused.shape[0] != len(parts) * width:
            raise QkjaxError(
                f"{name!r} has shape {fused.shape}, expected {len(parts) * width} rows: {', '.join(parts)}"
            )
        for part, array in zip(parts, np.split(fused, len(parts)), strict=True):
            flat[re.sub("/q?kv/", f"/{part}/", name)] = array


def _join_gated(flat: dict[str, np.ndarray]) -> None:
    """Concatenates the two halves of a gated MLP's first layer if they are stored separately, the gate first."""
    for name in [n for n in flat if "/gate/" in n]:
        value = name.replace("/gate/", "/value/")
        if value not in flat:
            raise QkjaxError(f"parameter {value!r} is missing next to {name!r}")
        flat[name.replace("/gate/", "/Dense_0/")] = np.concatenate([flat.pop(name), flat.pop(value)])


def _fill_missing_biases(flat: dict[str, np.ndarray], width: int) -> None:
    """Adds zeros for the key bias that BEiT and SimMIM lack, and the patch bias that CLIP lacks: the same function.

    A bias that only some layers lack is not added, and so causes an error later.
    """
    for part in ("query", "key", "value"):
        if not any(name.startswith(BLOCK) and name.endswith(f"{part}/bias") for name in flat):
            for name in [n for n in flat if n.startswith(BLOCK) and n.endswith(f"{part}/kernel")]:
                flat[name.removesuffix("kernel") + "bias"] = np.zeros(width, flat[name].dtype)
    if "pre_norm/scale" in flat:
        flat.setdefault("embedding/bias", np.zeros(width, flat["embedding/kernel"].dtype))


def _share_relative_bias(flat: dict[str, np.ndarray]) -> None:
    """Copies the table of relative position biases that all layers of SimMIM's pre-training share to each layer."""
    shared = flat.pop("relative_position_bias", None)
    for name in [n for n in flat if shared is not None and n.endswith("query/kernel") and BLOCK in n]:
        own = name.replace("query/kernel", "relative_position_bias")
        flat[own] = flat[own] + shared if own in flat else shared


def _fold_prefix_positions(flat: dict[str, np.ndarray], width: int) -> None:
    """Adds the positions of class and distillation token to the tokens: the same function. DeiT's distillation
    token then becomes a register."""
    for name in ("cls", "distillation", "registers"):
        if name in flat:
            flat[name] = flat[name].reshape(1, -1, width)
    positions = flat.pop("positions", flat.pop("positions/kernel", None))
    prefix = [name for name in ("cls", "distillation") if name in flat]
    if positions is not None:
        positions = positions.reshape(1, -1, width)
        # in timm, special tokens may have no positions, and registers may have some
        choices = (prefix, [], [*prefix, "registers"] if "registers" in flat else prefix)
        counts = [sum(flat[name].shape[1] for name in names) for names in choices]
        rows = [max(positions.shape[1] - count, 0) for count in counts]
        chosen = next((i for i, n in enumerate(rows) if n and isqrt(n) ** 2 == n), 0)
        at = 0
        for name in choices[chosen]:  # in float32: half precision would round the sum
            part = positions[:, at : at + flat[name].shape[1]].astype(np.float32)
            flat[name], at = flat[name].astype(np.float32) + part, at + flat[name].shape[1]
        flat["pos_embedding"] = positions[:, at:]
        if not flat["pos_embedding"].size:
            raise QkjaxError(f"the position embedding has {at} rows, expected more than the special tokens need")
    elif not any("relative_position_bias" in name for name in flat):
        raise QkjaxError(
            "no position embedding: rotary ones (DINOv3) are not supported: the interaction depends on the offset"
        )
    if "distillation" in flat:
        flat["registers"] = flat.pop("distillation")


def _oriented(name: str, array: np.ndarray, heads: int) -> np.ndarray:
    """Transposes (out, in) to (in, out), and splits query, key, value and out into heads."""
    kernel = name.endswith("/kernel") and array.ndim == 2
    array = array.T if kernel else array
    if f"{ATTENTION}/out/kernel" in name:
        return array.reshape(heads, -1, array.shape[-1])
    if ATTENTION in name and name.split("/")[-2] in ("query", "key", "value"):
        return array.reshape(*array.shape[:-1], heads, -1)
    return array


def defaults(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Settings of a file without config.json; torch uses bicubic resampling of position embeddings."""
    if "pre_norm/scale" in shapes:
        own = {"activation": "quick_gelu", "norm_eps": 1e-5}  # CLIP
    elif "MAPHead_0/probe" in shapes:
        own = {"activation": "gelu_tanh"}  # SigLIP
    else:
        own = {"activation": "swiglu" if _is_gated(shapes) else "gelu"}
    # DINOv2's models with registers use antialiasing, in transformers and Meta's code; the others do not.
    antialias = "registers" in shapes and "LayerScale_0/scale" in " ".join(shapes)
    return {"posemb_resample": "bicubic_antialias" if antialias else "bicubic", **own}


def _is_gated(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the second layer of the MLP has half as many inputs as the first has outputs."""
    first, second = (shapes.get(f"{BLOCK}_0/MlpBlock_0/Dense_{i}/kernel", ()) for i in (0, 1))
    return len(first) == len(second) == 2 and first[1] == 2 * second[0]
