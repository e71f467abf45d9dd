"""Reads the rotary positions of a timm module, and the arguments of config.json that change them."""

from collections.abc import Mapping
from typing import Any

from qkjax.errors import QkjaxError
from qkjax.weights.families.facts import height_and_width

ARGUMENTS = {"use_rot_pos_emb", "rope_type", "rope_temperature", "rope_grid_offset", "rope_grid_indexing",
             "rope_rotate_half", "ref_feat_shape"}  # fmt: skip
"""Arguments of timm's `Eva` that decide the angles of the rotation."""
TYPES = {"index": "cat", "centred": "dinov3"}
"""timm's name of the rotation, for each value of `Rotary.coordinates`."""
INDEXING = {"ij": "rows", "xy": "columns"}
MIXED = (
    "its rotary frequencies are learned for each head (RoPE-mixed), which qkjax's model does not compute: the "
    "modes are those of Wq Wk^T, the interaction of two tokens at the same place"
)


def rotary_of(rope: Any) -> dict | None:
    """The fields of `Rotary` that describe a rotation of timm; None if timm's module is of an unknown kind.

    Args:
      rope: a module such as timm's `RotaryEmbeddingCat`.
    """
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":
        return _centred(rope)
    if type(rope).__name__ != "RotaryEmbeddingCat" or getattr(rope, "grid_type", "index") != "index":
        return None
    if rope.in_pixels or rope.linear_bands or rope.grid_indexing not in INDEXING:
        return None
    return {
        "temperature": float(rope.temperature),
        "coordinates": "index",
        "offset": float(rope.grid_offset),
        "reference": rope.ref_feat_shape and list(map(int, rope.ref_feat_shape)),
        "first": INDEXING[rope.grid_indexing],
        "pairs": "half" if getattr(rope, "rotate_half", False) else "interleaved",
    }


def _centred(rope: Any) -> dict | None:
    """The fields of `Rotary` that describe the rotation of timm's DINOv3."""
    periods = (rope.temperature, rope.min_period, rope.max_period)
    if periods[0] is None or periods[1:] != (None, None) or rope.normalize_coords != "separate":
        return None
    if rope.grid_indexing not in INDEXING:
        return None
    return {
        "temperature": float(rope.temperature),
        "coordinates": "centred",
        "offset": float(rope.grid_offset),
        "first": INDEXING[rope.grid_indexing],
        "pairs": "half" if rope.rotate_half else "interleaved",
    }


def changed(rotary: Mapping | None, arguments: Mapping) -> dict:
    """The rotary positions of an architecture, including the arguments in config.json that change them.

    Args:
      rotary: the result of `rotary_of` for the architecture; None if it has no rotary positions.
      arguments: arguments of the model in config.json; timm ignores those that are null.

    Returns:
      A dict with the key "rotary", or an empty dict if no argument concerns rotary positions.

    Raises:
      QkjaxError: an argument has an unknown value, or the architecture's own rotation is unknown.
    """
    given = {name: arguments[name] for name in sorted(ARGUMENTS & set(arguments)) if arguments[name] is not None}
    if not given:
        return {}
    if rotary is None:
        if given.get("use_rot_pos_emb", False) in (False,):
            return {}
        raise QkjaxError(
            "config.json has use_rot_pos_emb=True for an architecture that has no rotary positions: pass "
            "rotary=Rotary(...), and remove this key"
        )
    if given.get("use_rot_pos_emb", True) is not True:
        return {"rotary": None}
    fields = dict(rotary)
    for name, value in given.items():
        if name not in CHANGES or (name == "ref_feat_shape" and rotary.get("coordinates") == "centred"):
            continue  # timm does not scale centred coordinates
        field, convert = CHANGES[name]
        if (converted := convert(value)) is None:
            raise QkjaxError(f"config.json has {name}={value!r}, which is not a valid value of this argument of timm")
        fields[field] = converted
    expected = TYPES[rotary.get("coordinates", "index")]
    if given.get("rope_type", expected) != expected:
        raise QkjaxError(f"config.json has rope_type={given['rope_type']!r}, expected {expected!r}")
    return {"rotary": fields}


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _pair(value: Any) -> list[int] | None:
    pair = height_and_width(value)
    return pair and list(pair)


CHANGES = {
    "rope_temperature": ("temperature", _number),
    "rope_grid_offset": ("offset", _number),
    "rope_grid_indexing": ("first", lambda value: INDEXING.get(str(value))),
    "rope_rotate_half": ("pairs", {True: "half", False: "interleaved"}.get),
    "ref_feat_shape": ("reference", _pair),
}
