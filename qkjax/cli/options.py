"""Types of command-line options, and a function that replaces argument names in library errors by option names."""

import re
from typing import Annotated, Literal

from tyro.conf import arg

EditKind = Literal["drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric", "unbias"]
Pool = Literal["tok", "gap", "map", "none", "0"]
Dtype = Literal["float32", "bfloat16"]
Stream = Literal["norm", "residual"]
KeyBias = Annotated[bool, arg(help_behavior_hint="")]
"""Type of the option --no-key-bias, which sets `key_bias` to False; its help describes what --no-key-bias does."""

OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("top", "batch", "resolution", "count", "seed", "layer", "head", "queries", "limit", "labels", "grid",
                 "heads", "pool", "images", "modes", "fold_scale", "center", "select", "controls", "fresh")
} | {"scores": "--score", "folder": "--out", "sheet_modes": "--sheet-modes"}  # fmt: skip
"""A dict from the names of library arguments to the names of the corresponding command-line options."""


def given_options(**settings) -> dict:
    """The settings that the user gave: those whose value is not None."""
    return {name: value for name, value in settings.items() if value is not None}


def in_options(message: str) -> str:
    """Translates arguments in a library error, such as `top=0`, to command-line options, such as `--top 0`.

    >>> in_options("top=0: expected a whole number of at least 1; center=True needs fold_scale=True")
    '--top 0: expected a whole number of at least 1; --center needs --fold-scale'
    """

    def option(match: re.Match) -> str:
        name, value = OPTIONS[match[1]], match[2]
        return name if value in ("True", "...") else f"{name} {value}"

    names = "|".join(sorted(OPTIONS, key=len, reverse=True))
    return re.sub(rf"(?<![\w.\"'-])({names})=(True\b|\.\.\.|(?=\S))", option, message)
