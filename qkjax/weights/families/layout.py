"""How a type of model stores its parameters, where that differs from all others."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from qkjax.errors import QkjaxError

Read = Callable[[str], np.ndarray]


class Layout(NamedTuple):
    """Properties of the parameters of a model type that other types do not share.

    Attributes:
      renamed: patterns of names and their replacements, applied one after the other.
      left_out: pattern of the names that do not belong to the vision transformer; "" if all do.
      class_tokens: number of class tokens, stored as one array. The first is our class token, the others registers.
      unused_positions: number of rows at the start of the position table that no token uses.
      channels_first: a dense patch embedding takes all pixels of one channel before those of the next.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    left_out: str = ""
    class_tokens: int = 1
    unused_positions: int = 0
    channels_first: bool = False

    def apply(self, keys: Iterable[str], read: Read) -> tuple[list[str], Read, tuple[str, ...]]:
        """Renames parameters and leaves out those of other parts.

        Returns:
          The names, a function that reads an array by its new name, and a note on what was left out.

        Raises:
          QkjaxError: two parameters get the same name.
        """
        keys = list(keys)
        outside = [key for key in keys if self.left_out and re.search(self.left_out, key)]
        names: dict[str, str] = {}
        for key in sorted(set(keys) - set(outside)):
            if (name := self._renamed(key)) in names:
                raise QkjaxError(f"both {names[name]!r} and {key!r} hold {name!r}: expected a file with one model")
            names[name] = key
        parts = ", ".join(sorted({key.rpartition(".")[0] or key for key in outside})[:4])
        more = ", ..." if len({key.rpartition(".")[0] for key in outside}) > 4 else ""
        notes = (f"left out, since they are not part of the vision transformer: {parts}{more}",) if outside else ()
        return list(names), lambda name: read(names[name]), notes

    def _renamed(self, key: str) -> str:
        for pattern, replacement in self.renamed:
            key = re.sub(pattern, replacement, key)
        return key


def renumbered(layers: Iterable[str], to: str) -> tuple[tuple[str, str], ...]:
    """Patterns that number layers of several stages consecutively.

    Args:
      layers: prefixes of the layers in their order, such as "stages.1.layers.0.".
      to: what precedes the new number, such as "layers.".
    """
    return tuple((rf"(^|\.){re.escape(layer)}", rf"\g<1>{to}{n}.") for n, layer in enumerate(layers))
