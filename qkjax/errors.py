"""The exception that qkjax raises for its users to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class AssumptionWarning(UserWarning):
    """Something that decides a number is not in a checkpoint's files, and was assumed; results store it."""


class QkjaxError(Exception):
    """Invalid input, or a failed operation outside qkjax: one line that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.

    Example:
      >>> import qkjax
      >>> try:
      ...     qkjax.load("dinov2-vits14-fokus")
      ... except qkjax.QkjaxError as error:
      ...     print("one line:", len(str(error).splitlines()))
      one line: 1
    """

    def __init__(self, message: str):
        line = " ".join(message.split())  # messages of libraries may have line breaks,
        super().__init__(line.encode(errors="replace").decode())  # and file names may have bytes that are not text


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error line: " (nearest: 'x')", or nothing if no known name is similar."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]!r})" if close else ""
