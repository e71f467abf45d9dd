"""Converts the different names of a parameter in Google's ViT checkpoints to one canonical name.

The functions use only names and shapes. The canonical names are those of the current version of big_vision.
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
    """The location of a canonical parameter in a file: the key, and for scanned blocks the index on the first axis."""

    key: str
    layer: int | None = None


def params_prefix(keys: Iterable[str]) -> str:
    """The prefix of the parameters' keys: "params/" (trainer), "opt/target/" (Flax optimizers), or "" (bare tree)."""
    keys = list(keys)
    return next((p for p in ("params/", "opt/target/") if any(k.startswith(p) for k in keys)), "")


def subtree(keys: Iterable[str], sub: str | None, where: str) -> dict[str, str]:
    """Returns a dict from the ViT's keys without prefix to the keys of the file.

    Args:
      keys: all keys of the file.
      sub: the sub-model that follows the colon in a path, such as "img"; None if the file contains only the ViT.
      where: path of the file, for error messages.

    Raises:
      QkjaxError: the sub-model does not exist, or there are two towers and `sub` is None.
    """
    keys = list(keys)
    prefix = params_prefix(keys)
    inside = {k.removeprefix(prefix): k for k in keys if k.startswith(prefix)}
    if sub:
        chosen = {k.removeprefix(f"{sub}/"): full for k, full in inside.items() if k.startswith(f"{sub}/")}
        if not chosen:
            tops = sorted({k.split("/")[0] for k in inside})
            raise QkjaxError(f"{where} has no sub-model {sub!r}; it has {', '.join(tops[:12])}")
        return chosen
    if any(k.startswith("img/") for k in inside):
        raise QkjaxError(f"{where} has several models ({', '.join(TOWERS)}): choose the image tower with {where}:img")
    return inside


def scan_depth(keys: dict[str, str], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The number of layers of scanned blocks, which is the length of the first axis; None if no blocks are scanned.

    Raises:
      QkjaxError: the arrays have different lengths.
    """
    scanned = [full for key, full in keys.items() if key.startswith(f"{BLOCK}/")]
    depths = {full: shapes[full][0] if shapes[full] else 0 for full in scanned}
    for full, layers in depths.items():
        if layers != depths[scanned[0]] or not 0 < layers <= MOST_LAYERS:
            raise QkjaxError(
                f"{full!r} has {layers} layers and {scanned[0]!r} has {depths[scanned[0]]}; expected equal numbers"
            )
    return depths[scanned[0]] if scanned else None


def canonical(keys: dict[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    """Returns the canonical big_vision names of a ViT's parameters. Scanned blocks are unrolled.

    Args:
      keys: a dict from keys inside the ViT to keys of the file.
      shapes: a dict from keys of the file to shapes.

    Raises:
      QkjaxError: the model is a hybrid of ResNet and ViT, there are two arrays for one parameter, or the scanned arrays
        have unequal depths.
    """
    if hybrid := [k for k in keys if k.split("/")[0] in HYBRID]:
        raise QkjaxError(
            f"this is a hybrid of ResNet and ViT (it has {hybrid[0]!r}): a ResNet computes its tokens; use a plain ViT"
        )
    old_blocks = {k.split("/")[1] for k in keys if k.startswith(BLOCK) and k.split("/")[2:3] == ["LayerNorm_2"]}
    layers = scan_depth(keys, shapes)
    named: dict[str, Stored] = {}
    for key, full in keys.items():
        parts = key.split("/")
        if parts[0] in ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0"):
            parts.insert(0, "MAPHead_0")  # in ViT-G of 2021, the pooling head is at the top level
        elif key in POSEMB:
            parts = ["pos_embedding"]
        elif len(parts) > 2 and parts[1] in old_blocks:
            parts[2] = PRE_LINEN.get(parts[2], parts[2])
        if layers and parts[:2] == BLOCK.split("/"):
            stored = {"/".join([f"{BLOCK}_{i}", *parts[2:]]): Stored(full, i) for i in range(layers)}
        else:
            stored = {"/".join(parts): Stored(full)}
        if twice := named.keys() & stored.keys():
            name = min(twice)
            raise QkjaxError(f"both {named[name].key!r} and {full!r} contain the parameter {name!r}; remove one")
        named |= stored
    return named


def depth(names: Iterable[str]) -> int:
    """The number of layers.

    Raises:
      QkjaxError: there are no blocks, or the indices of the blocks have a gap.
    """
    indices = {int(m[1]) for name in names if (m := re.match(rf"{BLOCK}_(\d{{1,6}})/", name))}
    absent = min(set(range(len(indices) or 1)) - indices, default=None)
    if absent is not None:
        raise QkjaxError(f"parameters '{BLOCK}_{absent}/...' are missing")
    return len(indices)
