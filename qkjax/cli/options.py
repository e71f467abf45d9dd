"""Types of command-line options, and a function that replaces argument names in library errors by option names."""

import os
import re
import shlex
from typing import Annotated, Literal

from tyro.conf import arg

from qkjax.errors import QkjaxError
from qkjax.runtime.visible import visible

EditKind = Literal["drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric", "unbias"]
Pool = Literal["tok", "gap", "map", "none", "0"]
Dtype = Literal["float32", "bfloat16"]
Stream = Literal["norm", "residual"]
Match = Literal["logits", "strength"]
FrameName = Literal["plain", "folded"]
"""Names of the frames of M: M itself, or M with the LayerNorm scale folded in; see `qkjax.decompose`."""
KeyBias = Annotated[bool, arg(help_behavior_hint="")]
"""Type of the option --no-key-bias, which sets `key_bias` to False; its help describes what --no-key-bias does."""

OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("top", "batch", "resolution", "count", "seed", "layer", "head", "queries", "limit", "labels", "grid",
                 "heads", "pool", "images", "modes", "fold_scale", "center", "select", "controls", "fresh", "shard",
                 "rotary_grid", "match")
} | {"scores": "--score", "folder": "--out", "sheet_modes": "--sheet-modes"}  # fmt: skip
"""A dict from the names of library arguments to the names of the corresponding command-line options."""

Shard = Annotated[str | None, arg(metavar="I/N")]
"""Type of the option --shard; see `shard_of`."""


def shard_of(text: str | None) -> tuple[int, int] | None:
    """Parses the option --shard; returns the index of the share and the number of shares.

    Raises:
      QkjaxError: the text does not have the form I/N.

    >>> shard_of("2/8")
    (2, 8)
    """
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise QkjaxError(
            f"shard={text!r}: expected the index of a share (counted from 0) and the number of shares, such as 0/8"
        )
    return int(index), int(count)


def join_hosts(distributed: bool) -> None:
    """Connects to the other processes of a distributed run. Call this function before any computation."""
    if distributed:
        from qkjax.runtime.hosts import join

        join()


def quoted(argument: str) -> str:
    """An argument as the user has to type it in a shell, for commands that qkjax prints.

    Hidden characters, such as a line end or bytes that are not text, are written as escape sequences, which the shells
    bash and zsh understand in $'...'.

    >>> quoted("my model.npz"), quoted("two\\nlines.npz")
    ("'my model.npz'", "$'two\\\\nlines.npz'")
    """
    if visible(argument) == argument:
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + visible(os.fsencode(escaped).decode(errors="backslashreplace")) + "'"


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
