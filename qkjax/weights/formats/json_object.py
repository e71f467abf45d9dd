"""Reads JSON files that contain one object."""

import json
from pathlib import Path

from qkjax.errors import QkjaxError


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
      QkjaxError: the file cannot be read, or does not contain a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise QkjaxError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise QkjaxError(f"{path} contains {type(value).__name__}, expected a JSON object")
    return value
