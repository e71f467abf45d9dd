"""Parses the options of a command, and reports invalid options on one line."""

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from io import StringIO

import tyro
from tyro.conf import FlagCreatePairsOff

from qkjax.cli.plain_help import with_plain_help
from qkjax.errors import QkjaxError

FRAME = re.compile(r"[\u2500-\u257f]|-{4,}|^\s*[+|]-?|[+|]\s*$")
"""The frame that tyro draws around an error, with or without special characters."""
MOST_CHARACTERS = 400


def parse(commands: Mapping[str, Callable[..., None]], arguments: list[str]) -> Callable[[], None]:
    """Returns a function that runs a command with the options that the arguments give.

    With the option --help, tyro prints the help and exits.

    Args:
      commands: a dict from the name of each command to the function.
      arguments: the name of the command, and its options.

    Raises:
      QkjaxError: an option is unknown, missing or invalid.
    """
    stderr = sys.stderr
    messages = StringIO()
    try:
        with redirect_stderr(messages):
            return tyro.extras.subcommand_cli_from_dict(
                {name: with_plain_help(function) for name, function in commands.items()},
                args=arguments,
                prog="qkjax",
                description="Analyses the query-key interaction of vision transformers.",
                config=(FlagCreatePairsOff,),
            )
    except SystemExit as error:
        if error.code != 2:
            stderr.write(messages.getvalue())
            raise
        raise QkjaxError(f"{_reason(messages.getvalue())}; see qkjax {arguments[0]} --help") from error


def _reason(message: str) -> str:
    """The first part of an error of tyro, up to the first line inside its frame, on one line of limited length."""
    title, *lines = [FRAME.sub("", line).strip() for line in message.splitlines()]
    while lines and not lines[0]:  # without special characters, a line of hyphens follows the title
        del lines[0]
    first = lines[: lines.index("")] if "" in lines else lines
    text = " ".join(" ".join(first).split()) or title
    return text[:MOST_CHARACTERS].rstrip(".")
