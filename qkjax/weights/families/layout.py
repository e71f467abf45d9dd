"""The layout of a model type's parameters, where it differs from all other types."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from qkjax.errors import QkjaxError

Read = Callable[[str], np.ndarray]


class Layout(NamedTuple):
    """Properties of a model type's parameters that other types do not share.

    Attributes:
      renamed: regular expressions for names, with replacements, which are applied one after the other.
      left_out: regular expression for names that are not part of the vision transformer; "" if all names are part of
        it.
      class_tokens: number of class tokens in the array of class tokens. qkjax uses the first as class token, and the
        others as registers.
      unused_positions: number of rows at the start of the position table that no token uses.
      channels_first: whether the inputs of a dense patch embedding are ordered by channel first.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    left_out: str = ""
    class_tokens: int = 1
    unused_positions: int = 0
    channels_first: bool = False

    def apply(self, keys: Iterable[str], read: Read) -> tuple[list[str], Read, tuple[str, ...]]:
        """Renames parameters, and leaves out parameters that are not part of the vision transformer.

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
                raise QkjaxError(f"both {names[name]!r} and {key!r} contain {name!r}: expected a file with one model")
            names[name] = key
        parts = ", ".join(sorted({key.rpartition(".")[0] or key for key in outside})[:4])
        more = ", ..." if len({key.rpartition(".")[0] for key in outside}) > 4 else ""
        notes = (f"left out, because they are not part of the vision transformer: {parts}{more}",) if outside else ()
        return list(names), lambda name: read(names[name]), notes

    def _renamed(self, key: str) -> str:
        for pattern, replacement in self.renamed:
            key = re.sub(pattern, replacement, key)
        return key


def renumbered(layers: Iterable[str], to: str) -> tuple[tuple[str, str], ...]:
    """Regular expressions, with replacements, that number the layers of several stages consecutively.

    Args:
      layers: prefixes of the layers in order, such as "stages.1.layers.0.".
      to: text before the new number, such as "layers.".
    """
    return tuple((rf"(^|\.){re.escape(layer)}", rf"\g<1>{to}{n}.") for n, layer in enumerate(layers))
