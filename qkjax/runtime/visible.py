"""Makes strings from outside, such as file names, safe: escapes characters that control a terminal or hide text."""

import re
from io import TextIOBase

HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""The hidden characters: control characters, direction marks, zero-width characters, and bytes that are not valid
text."""
LINES = "\n\r\t"


def visible(text: str, keep: str = "") -> str:
    """Replaces the hidden characters in a text by escape sequences, such as \\\\x1b.

    Args:
      keep: hidden characters that are not replaced.

    Example:
      >>> visible("\\x1b[31mred.npz")
      '\\\\x1b[31mred.npz'
    """
    return HIDDEN.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


class VisibleStream:
    """A text stream that writes hidden characters, except line ends, as escape sequences."""

    def __init__(self, stream: TextIOBase):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text."""
        return self._stream.write(visible(text, LINES))

    def writelines(self, lines) -> None:
        """Writes all lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
