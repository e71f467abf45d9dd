"""Reads JSON files that contain one object."""

from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.parsed import from_json

LARGEST = 64 << 20
"""Largest accepted JSON file in bytes. The index of a model with billions of parameters has less than a million
bytes."""


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
      QkjaxError: the file cannot be read, or does not contain a JSON object.
    """
    if not path.is_file():
        raise QkjaxError(f"{path} is not a file")
    if (size := path.stat().st_size) > LARGEST:
        raise QkjaxError(f"{path} has {size} bytes, expected a configuration of at most {LARGEST}")
    try:
        value = from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise QkjaxError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise QkjaxError(f"{path} contains a {type(value).__name__}, expected a JSON object")
    return value
