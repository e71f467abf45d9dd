"""The short name of a mode, as in the paper's figures: "L8 H9 M2"."""

import re
from typing import NamedTuple

from qkjax.errors import QkjaxError


class ModeName(NamedTuple):
    """The name of a mode.

    Attributes:
      layer, head: layer and head, counted from 0.
      mode: index among the modes of the head, counted from 0 for the strongest mode.
      sign: 1 for the directions (u, v) in `Modes`, -1 for (-u, -v), and 0 if the sign is unspecified.
    """

    layer: int
    head: int
    mode: int
    sign: int = 0

    def __str__(self) -> str:
        return f"L{self.layer} H{self.head} M{self.mode}" + {1: "+", -1: "-", 0: ""}[self.sign]

    @classmethod
    def parse(cls, text: str, shape: tuple[int, int, int]) -> "ModeName":
        """Parses "L8 H9 M2", "l8h9m2" or, with a sign, "L8 H9 M2+" and "L8 H9 M2-".

        Args:
          text: the name of a mode.
          shape: the number of layers, of heads per layer, and of modes per head.

        Raises:
          QkjaxError: the text is not the name of a mode, or the model has no such mode.
        """
        match = re.fullmatch(r"\s*L(\d+)\s*H(\d+)\s*M(\d+)\s*([+-]?)\s*", text, re.IGNORECASE)
        if not match:
            raise QkjaxError(f"mode={text!r}: expected layer, head and mode; pass a name such as 'L8 H9 M2'")
        name = cls(*(int(n) for n in match.groups()[:3]), {"+": 1, "-": -1, "": 0}[match[4]])
        if any(n >= limit for n, limit in zip(name, shape, strict=False)):
            layers, heads, modes = shape
            raise QkjaxError(
                f"mode='{name}': expected a layer from 0 to {layers - 1}, a head from 0 to {heads - 1} and a mode "
                f"from 0 to {modes - 1}; pass another name"
            )
        return name


def requested_indices(what: str, value: int | None, count: int) -> range:
    """Indices of the requested layers or heads: a single index, or all.

    Args:
      what: "layer" or "head", for the error message.
      value: index of the requested layer or head; None for all.
      count: number of layers or heads.

    Raises:
      QkjaxError: the requested layer or head does not exist.
    """
    if value is None:
        return range(count)
    if not 0 <= value < count:
        raise QkjaxError(f"{what}={value}: expected a number from 0 to {count - 1}, as the model has {count} {what}s")
    return range(value, value + 1)
