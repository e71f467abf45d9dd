"""Checks the sizes of images, and the sizes and colours in settings for images."""

import os
import textwrap
from typing import Any

from qkjax.errors import QkjaxError

Resolution = int | tuple[int, int]  # side of a square in pixels, or (height, width)


def _short(value: Any) -> str:
    try:
        return textwrap.shorten(repr(value), 60)
    except ValueError:  # Python does not print a whole number with thousands of digits
        return "a number with thousands of digits"


def from_environment(name: str, default: int | None) -> int | None:
    """The whole number in an environment variable, or `default` if the variable is empty or not set.

    Raises:
      QkjaxError: the variable is not a whole number from 1 to 10^18.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text)):
        raise QkjaxError(f"{name}={_short(text)}: expected a whole number of at least 1; change this variable")
    return int(text)


MAX_SIDE = from_environment("QKJAX_MAX_SIDE", 4096)
"""Largest side in pixels of the image that a model sees. With 4,096 pixels per side, there are 65,536 patches of 16
pixels."""
MAX_LENGTH = 1 << 17
"""Largest side in pixels of an image in a file."""
LARGEST = 1e6
"""Largest allowed mean and standard deviation. The smallest allowed standard deviation is the inverse of this value."""


def check_pixels(width: int, height: int, most: int | None = None) -> None:
    """Checks the size of an image before its pixels are decoded.

    The environment variable QKJAX_MAX_PIXELS sets the limit; the default is Pillow's limit, about 89 million pixels.

    Args:
      width, height: size in pixels that the header of the image states.
      most: a further limit on the number of pixels; None if there is no further limit.

    Raises:
      ValueError: the image has more pixels than a limit allows.
    """
    from PIL import Image

    stated = from_environment("QKJAX_MAX_PIXELS", None)
    limit, owner = stated or Image.MAX_IMAGE_PIXELS, "the" if stated else "Pillow's"
    if limit and width * height > limit:
        raise ValueError(
            f"{width} x {height} pixels exceed {owner} limit of {limit} pixels (set QKJAX_MAX_PIXELS to raise this "
            "limit)"
        )
    if max(width, height) > MAX_LENGTH:
        raise ValueError(f"{width} x {height} pixels exceed the limit of {MAX_LENGTH} pixels per side; crop the image")
    if most is not None and width * height > most:
        raise ValueError(f"{width} x {height} pixels are more than the {most} pixels of its image")


def pair(size: Resolution) -> tuple[int, int]:
    """Converts a size, which may be the side of a square, to (height, width)."""
    return (size, size) if isinstance(size, int) else size


def check_sides(name: str, size: Any) -> None:
    """Checks one side of a picture, or height and width.

    Raises:
      QkjaxError: a side is not a whole number of pixels from 1 to `MAX_SIDE`.
    """
    sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise QkjaxError(
            f"{name}={_short(size)}: expected whole numbers of pixels from 1 to {MAX_SIDE} (set QKJAX_MAX_SIDE to "
            "raise this limit)"
        )


def check_colours(name: str, values: Any, low: float, high: float) -> None:
    """Checks that there is one number per colour, and that each number is in a range.

    Raises:
      QkjaxError: there are not three numbers, or a number is NaN or outside the range.
    """
    plain = isinstance(values, tuple) and len(values) == 3 and all(type(x) in (int, float) for x in values)
    if not (plain and all(low <= x <= high for x in values)):
        raise QkjaxError(f"{name}={_short(values)}: expected three numbers from {low:g} to {high:g}")
