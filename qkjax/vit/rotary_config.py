"""Describes the rotary positions of a ViT."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from qkjax.errors import QkjaxError


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the angle by which each position rotates each plane of queries and keys.

    Half of the planes rotate with the row of a patch, and the other half with its column. Plane k of n planes per axis
    rotates by p temperature^(-k / n), where p is the coordinate of the patch; `qkjax.vit.rotary` computes the angles.
    Class token and registers are not rotated.

    Attributes:
      temperature: ratio of the fastest to the slowest rotation (of n + 1 planes).
      coordinates: "index" counts patches: p is the index of the row or column plus `offset`. "centred" uses the centres
        of patches, from -2 pi to 2 pi along each axis of the actual grid: p = 2 pi (2 (index + 0.5) / size - 1)
        (DINOv3).
      offset: number that is added to the index.
      reference: (rows, columns) of the grid to which "index" coordinates are scaled: (index + offset) reference / size
        (EVA-02); None if coordinates are not scaled.
      first: whether the first half of the planes rotates with the "rows" or with the "columns".
      pairs: which columns of a head form a plane; see `qkjax.interaction.rotary.rotation.Pairs`.
      class_angles: whether the class token is rotated, too, by angles that are learned, one for each plane (MLCD).

    Example:
      >>> from qkjax.vit.rotary_config import Rotary
      >>> Rotary(100.0, "centred", pairs="half").temperature  # DINOv3
      100.0
    """

    temperature: float
    coordinates: Literal["index", "centred"] = "index"
    offset: float = 0.0
    reference: tuple[int, int] | None = None
    first: Literal["rows", "columns"] = "rows"
    pairs: Literal["half", "interleaved"] = "interleaved"
    class_angles: bool = False

    @classmethod
    def from_dict(cls, fields: object) -> "Rotary":
        """Restores rotary positions from the plain values of `ViTConfig.to_dict()`.

        Raises:
          QkjaxError: a field is unknown, missing, or has an invalid value.
        """
        if not isinstance(fields, Mapping):
            raise QkjaxError(f"rotary is {fields!r}: expected an object with the fields of qkjax.Rotary")
        if unknown := fields.keys() - cls.__dataclass_fields__.keys():
            raise QkjaxError(
                f"rotary has the unknown field {min(unknown)!r}; expected {', '.join(cls.__dataclass_fields__)}"
            )
        if "temperature" not in fields:
            raise QkjaxError("rotary has no field 'temperature': expected a positive number")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        for name, value in values.items():
            if not _is_allowed_rotary(name, value):
                raise QkjaxError(f"rotary has {name}={value!r}: expected {ROTARY_FIELDS[name]}")
        return cls(**values)


ROTARY_FIELDS = {
    "temperature": "a positive number",
    "coordinates": "'index' or 'centred'",
    "offset": "a finite number",
    "reference": "None or two positive whole numbers",
    "first": "'rows' or 'columns'",
    "pairs": "'half' or 'interleaved'",
    "class_angles": "True or False",
}
"""The fields of `Rotary` with the allowed values."""


def _is_allowed_rotary(name: str, value) -> bool:
    if name in ("temperature", "offset"):
        return type(value) in (int, float) and isfinite(value) and (name == "offset" or value > 0)
    if name == "reference":
        return value is None or is_grid(value)
    return f"{value!r}" in ROTARY_FIELDS[name].split(" or ")


def is_grid(value) -> bool:
    """Whether a value is a tuple of two positive whole numbers."""
    return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
