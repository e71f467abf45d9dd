"""Checks that a download has the format that its file name suggests, and is not a login page or an error page."""

import json
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from qkjax.errors import QkjaxError
from qkjax.weights.formats.file_names import PICKLED

ZIP = b"PK\x03\x04"
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LONGEST_HEADER = 100_000_000  # largest header in bytes that the safetensors library accepts


def check_content(file: BinaryIO, name: str) -> None:
    """Checks the first bytes of a file, and, for formats that allow this check, that the file is complete.

    Args:
      file: the file, open for reading.
      name: the name of the file; its suffix determines the expected format.

    Raises:
      QkjaxError: the file has a different format, or its end is missing.
    """
    file.seek(0)
    start, suffix = file.read(16), Path(name).suffix
    if suffix == ".npz" or (suffix in PICKLED and start.startswith(ZIP)):
        problem = _zip_problem(file, start)
    elif suffix in PICKLED:
        problem = "" if start.startswith(PICKLES) else f"it begins with {start!r}, expected 'PK' or 0x80 (PyTorch)"
    elif suffix == ".safetensors":
        problem = _safetensors_problem(file, start)
    else:
        problem = "it is a web page" if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else ""
    if problem:
        raise QkjaxError(f"{name} is not a complete checkpoint: {problem}; download it again")


def _zip_problem(file: BinaryIO, start: bytes) -> str:
    if not start.startswith(ZIP):
        return f"it begins with {start!r}, expected {ZIP!r} (is it a login or error page?)"
    try:
        zipfile.ZipFile(file)
    except Exception:  # for damaged files, zipfile raises many kinds of exceptions
        return "the end of the zip file is missing or damaged"
    return ""


def _safetensors_problem(file: BinaryIO, start: bytes) -> str:
    """Checks the header of a safetensors file: its length, then JSON with the position of every array."""
    long = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or long > LONGEST_HEADER:
        return f"it begins with {start!r}, expected the header of a safetensors file"
    file.seek(8)
    try:
        header = json.loads(file.read(long))
        end = max((array["data_offsets"][1] for name, array in header.items() if name != "__metadata__"), default=0)
        expected = 8 + long + int(end)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "its header is damaged"
    actual = file.seek(0, os.SEEK_END)
    return "" if actual == expected else f"it has {actual} bytes, but its header requires {expected}"
