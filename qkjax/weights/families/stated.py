"""The preprocessing that a file states, some parts of which may be unknown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qkjax.errors import QkjaxError
from qkjax.images.limits import LARGEST, MAX_SIDE
from qkjax.images.preprocess import Preprocess, Resolution


class StatedPreprocess(NamedTuple):
    """The parts of a `Preprocess` that a file determines.

    Attributes:
      file: name of the file.
      fields: the fields of `Preprocess` that the file determines.
      unfollowed: a message on each part that qkjax does not know or follow, such as "has do_pad=true".
    """

    file: str
    fields: Mapping[str, Any]
    unfollowed: tuple[str, ...] = ()


def joined(height: int, width: int) -> Resolution:
    """Returns one number if height and width are equal, otherwise (height, width)."""
    return height if height == width else (height, width)


def missing_fields(stated: StatedPreprocess) -> list[str]:
    """The names of the fields of `Preprocess` that the file does not determine, in order."""
    return [name for name in Preprocess.__dataclass_fields__ if name not in stated.fields]


def as_side(value: Any) -> bool:
    """Whether a value of a JSON file is a length in pixels.

    Raises:
      QkjaxError: the length is larger than the side of any supported image.
    """
    if type(value) is int and value > MAX_SIDE:
        raise QkjaxError(f"a side of more than {MAX_SIDE} pixels (set QKJAX_MAX_SIDE to raise this limit)")
    return type(value) is int and value > 0


def colours(values: Any) -> tuple[float, float, float] | None:
    """Converts a list in a JSON file to three numbers, or returns None. `Preprocess` rejects impossible numbers."""
    if not isinstance(values, Sequence) or len(values) != 3:
        return None
    if not all(type(value) in (int, float) for value in values):
        return None
    return tuple(value if abs(value) > LARGEST else float(value) for value in values)
