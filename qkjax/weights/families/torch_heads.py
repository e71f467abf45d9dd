"""Determines the number of heads of a torch model, which must be stated, and is never guessed from the width."""

import re

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.families.big_vision_names import BLOCK
from qkjax.weights.families.facts import Facts
from qkjax.weights.families.torch_names import ATTENTION

MATRIX = 2


def head_count(flat: dict[str, np.ndarray], facts: Facts) -> tuple[int, int]:
    """The number of heads, and the number of rows (heads x head_dim) of the query weights.

    Raises:
      QkjaxError: the number of heads is not stated, or does not match the weights.
    """
    rows = _query_rows(flat)
    heads = facts.settings.get("heads")
    if heads is None:
        examples = " or ".join(str(rows // d) for d in (64, 32) if rows % d == 0) or "a divisor of it"
        raise QkjaxError(
            f"the file does not state the number of heads, and {rows} query rows do not determine it: pass heads=..., "
            f"such as {examples}"
        )
    if rows % heads or (facts.head_dim and facts.head_dim * heads != rows):
        stated = f"{heads} heads" + (f" of {facts.head_dim}" if facts.head_dim else "")
        raise QkjaxError(
            f"the queries have {rows} rows, which do not match {stated}: heads were pruned, or heads=... is wrong"
        )
    return heads, rows


def _query_rows(flat: dict[str, np.ndarray]) -> int:
    """The number of rows of the query weights in the first layer."""
    for name, parts in (("query", 1), ("qkv", 3)):
        kernel = flat.get(f"{BLOCK}_0/{ATTENTION}/{name}/kernel")
        if kernel is not None and (kernel.ndim != MATRIX or kernel.shape[0] % parts):
            raise QkjaxError(f"the {name} weights of layer 0 have shape {kernel.shape}, expected {parts} equal parts")
        if kernel is not None:
            return kernel.shape[0] // parts
    raise QkjaxError("not a supported ViT: the query weights of layer 0 are missing")


def split_fused(flat: dict[str, np.ndarray], rows: int) -> None:
    """Splits fused weights: query, key and value in layers, and key and value in timm's attention pooling.

    In Meta's files of DINOv3, a mask sets the bias of keys to zero.

    Raises:
      QkjaxError: a fused weight has a wrong number of rows, or a mask and its bias have different shapes.
    """
    for name in [n for n in flat if n.endswith("/bias_mask")]:
        mask, bias = flat.pop(name), flat.get(name.removesuffix("_mask"))
        if bias is None:
            continue
        if mask.shape != bias.shape:
            raise QkjaxError(f"{name!r} has shape {mask.shape}, expected that of the bias, {bias.shape}")
        flat[name.removesuffix("_mask")] = np.where(mask == 0, 0, bias * mask).astype(bias.dtype)
    for name in [n for n in flat if "/qkv/" in n or "/kv/" in n]:
        fused, parts = flat.pop(name), ("query", "key", "value") if "/qkv/" in name else ("key", "value")
        if fused.ndim == 0 or fused.shape[0] != len(parts) * rows:
            raise QkjaxError(f"{name!r} has shape {fused.shape}, expected {len(parts) * rows} rows: {', '.join(parts)}")
        for part, array in zip(parts, np.split(fused, len(parts)), strict=True):
            flat[re.sub("/q?kv/", f"/{part}/", name)] = array
