"""What a file states of a preprocessing, of which some parts may be unknown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qkjax.errors import QkjaxError
from qkjax.images.limits import LARGEST, MAX_SIDE
from qkjax.images.preprocess import Preprocess, Resolution


class StatedPreprocess(NamedTuple):
    """The parts of a `Preprocess` that a file determines.

    Attributes:
      file: name of the file.
      fields: fields of `Preprocess`; those that the file does not determine are missing.
      unfollowed: a clause on each part that is unknown or not followed, such as "has do_pad=true".
    """

    file: str
    fields: Mapping[str, Any]
    unfollowed: tuple[str, ...] = ()


def joined(height: int, width: int) -> Resolution:
    """One number for a square, otherwise (height, width)."""
    return height if height == width else (height, width)


def missing_fields(stated: StatedPreprocess) -> list[str]:
    """The fields of `Preprocess` that the file does not determine, in their order."""
    return [name for name in Preprocess.__dataclass_fields__ if name not in stated.fields]


def as_side(value: Any) -> bool:
    """Whether a value of a JSON file is a length in pixels.

    Raises:
      QkjaxError: it is a length that no image has.
    """
    if type(value) is int and value > MAX_SIDE:
        raise QkjaxError(f"a side has more than {MAX_SIDE} pixels (QKJAX_MAX_SIDE raises this limit)")
    return type(value) is int and value > 0


def colours(values: Any) -> tuple[float, float, float] | None:
    """Three numbers from a list of a JSON file, or None. `Preprocess` refuses those that cannot be."""
    if not isinstance(values, Sequence) or len(values) != 3:
        return None
    if not all(type(value) in (int, float) for value in values):
        return None
    return tuple(value if abs(value) > LARGEST else float(value) for value in values)
