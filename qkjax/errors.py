"""Defines the exceptions that qkjax raises and the warning that it issues."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 480
"""Characters of an error message. Names of files, and values in them, may have any length."""


class AssumptionWarning(UserWarning):
    """Warns that a checkpoint's files lack a value that affects the results, so that qkjax assumed the value.

    Result files store the assumption.
    """


class QkjaxError(Exception):
    """Error for invalid input or for a failed operation outside qkjax, such as reading a file.

    The message is one line that says what is wrong, where, and what to do. The middle of a message of more than
    `LONGEST` characters is left out. The command line prints the message without a traceback and exits with code 2.

    Example:
      >>> import qkjax
      >>> try:
      ...     qkjax.load("dinov2-vits14-fokus")
      ... except qkjax.QkjaxError as error:
      ...     print("one line:", len(str(error).splitlines()))
      one line: 1
    """

    def __init__(self, message: str):
        line = " ".join(message.split())  # error messages from libraries may have line breaks,
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"
        super().__init__(line.encode(errors="replace").decode())  # and file names may have bytes that are not text


class ShardFinished(Exception):  # noqa: N818 - it is no error
    """Signals that one share of a pass is finished and saved, but other shares are not finished.

    The last share to finish returns or writes the result of the whole pass. All other shares end with this exception.
    The command line prints its message and exits with code 0.

    Attributes:
      missing: indices of the shares that have not finished.

    Example:
      >>> from qkjax.errors import ShardFinished
      >>> str(ShardFinished(0, 4, [2, 3], "results"))
      'share 0/4 is finished and saved in results; shares 2, 3 are not: the last share to finish writes the result'
    """

    def __init__(self, index: int, count: int, missing: Iterable[int], folder):
        self.missing = list(missing)
        others = ("share " if len(self.missing) == 1 else "shares ") + ", ".join(map(str, self.missing))
        verb = "is" if len(self.missing) == 1 else "are"
        super().__init__(
            f"share {index}/{count} is finished and saved in {folder}; {others} {verb} not: "
            "the last share to finish writes the result"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its type if there is no message.

    >>> first_line(OSError("not found\\nat line 3")), first_line(KeyError())
    ('not found', 'KeyError')
    """
    return (str(error) or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for the end of an error message, such as " (nearest: 'x')"; empty if no known name is similar."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]!r})" if close else ""
