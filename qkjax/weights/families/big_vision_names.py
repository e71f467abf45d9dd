"""All the names that Google's ViT checkpoints have had for a parameter, brought to one.

Only strings and shapes are handled here, no data: big_vision's present names are the canonical
ones, and every older or foreign layout ends at this border.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qkjax.errors import QkjaxError

BLOCK = "Transformer/encoderblock"
PRE_LINEN = {"LayerNorm_2": "LayerNorm_1", "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
             "MlpBlock_3": "MlpBlock_0"}  # fmt: skip
POSEMB = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
HYBRID = ("conv_root", "gn_root", "block1")
TOWERS = ("img", "txt")
MOST_LAYERS = 1000


class Stored(NamedTuple):
    """Where a canonical parameter lies: a key of the file, and a slice of its first axis if scanned."""

    key: str
    layer: int | None = None


def params_prefix(keys: Iterable[str]) -> str:
    """What precedes the parameters: "params/" (trainer), "opt/target/" (Flax optimizers), or "" (bare)."""
    keys = list(keys)
    return next((p for p in ("params/", "opt/target/") if any(k.startswith(p) for k in keys)), "")


def subtree(keys: Iterable[str], sub: str | None, where: str) -> dict[str, str]:
    """Keys of the ViT, with its own prefix taken off, mapped to the file's keys.

    Args:
      sub: the sub-model after the colon of a path, such as "img"; None where the ViT is the whole.
      where: the file, for messages.

    Raises:
      QkjaxError: no such sub-model, or two towers and none chosen.
    """
    keys = list(keys)
    prefix = params_prefix(keys)
    inside = {k.removeprefix(prefix): k for k in keys if k.startswith(prefix)}
    if sub:
        chosen = {k.removeprefix(f"{sub}/"): full for k, full in inside.items() if k.startswith(f"{sub}/")}
        if not chosen:
            tops = sorted({k.split("/")[0] for k in inside})
            raise QkjaxError(f"{where} has no sub-model {sub!r}; at its top are: {', '.join(tops[:12])}")
        return chosen
    if any(k.startswith("img/") for k in inside):
        raise QkjaxError(f"{where} holds several models ({', '.join(TOWERS)}): name the image tower, {where}:img")
    return inside


def scan_depth(keys: dict[str, str], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Layers of scanned blocks: the leading axis that all their arrays share; None without them.

    Raises:
      QkjaxError: the arrays do not agree.
    """
    scanned = [full for key, full in keys.items() if key.startswith(f"{BLOCK}/")]
    depths = {full: shapes[full][0] if shapes[full] else 0 for full in scanned}
    for full, layers in depths.items():
        if layers != depths[scanned[0]] or not 0 < layers <= MOST_LAYERS:
            raise QkjaxError(f"{full!r} has {layers} layers, and {scanned[0]!r} {depths[scanned[0]]}")
    return depths[scanned[0]] if scanned else None


def canonical(keys: dict[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    """Canonical big_vision names (blocks unrolled) of a ViT's parameters.

    Args:
      keys: key inside the ViT -> key in the file.
      shapes: by key in the file.

    Raises:
      QkjaxError: a hybrid ResNet-ViT, two arrays for one parameter, or scanned arrays of unequal depth.
    """
    if hybrid := [k for k in keys if k.split("/")[0] in HYBRID]:
        raise QkjaxError(
            f"this is a hybrid ResNet-ViT (it has {hybrid[0]!r}): its tokens come from a ResNet; use a plain ViT file"
        )
    old_blocks = {k.split("/")[1] for k in keys if k.startswith(BLOCK) and k.split("/")[2:3] == ["LayerNorm_2"]}
    layers = scan_depth(keys, shapes)
    named: dict[str, Stored] = {}
    for key, full in keys.items():
        parts = key.split("/")
        if parts[0] in ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0"):
            parts.insert(0, "MAPHead_0")  # ViT-G of 2021: the pooling head at the top level
        elif key in POSEMB:
            parts = ["pos_embedding"]
        elif len(parts) > 2 and parts[1] in old_blocks:
            parts[2] = PRE_LINEN.get(parts[2], parts[2])
        if layers and parts[:2] == BLOCK.split("/"):
            found = {"/".join([f"{BLOCK}_{i}", *parts[2:]]): Stored(full, i) for i in range(layers)}
        else:
            found = {"/".join(parts): Stored(full)}
        if twice := named.keys() & found.keys():
            name = min(twice)
            raise QkjaxError(f"both {named[name].key!r} and {full!r} are parameter {name!r}: keep one")
        named |= found
    return named


def depth(names: Iterable[str]) -> int:
    """Number of layers.

    Raises:
      QkjaxError: the block indices have a gap, or there are none.
    """
    found = {int(m[1]) for name in names if (m := re.match(rf"{BLOCK}_(\d{{1,6}})/", name))}
    absent = min(set(range(len(found) or 1)) - found, default=None)
    if absent is not None:
        raise QkjaxError(f"parameters '{BLOCK}_{absent}/...' are missing")
    return len(found)
