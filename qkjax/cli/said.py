"""What was said on the command line."""

from typing import Literal

EditKind = Literal["drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric", "unbias"]
Pool = Literal["tok", "gap", "map", "none", "0"]


def said(**settings) -> dict:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}
