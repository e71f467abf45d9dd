"""What was said on the command line."""

from typing import Literal

EditKind = Literal["drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric", "unbias"]


def said(**settings) -> dict:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}
