"""JSON files that hold one object."""

import json
from pathlib import Path

from qkjax.errors import QkjaxError


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
      QkjaxError: not readable, or no object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise QkjaxError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise QkjaxError(f"{path} holds {type(value).__name__}, wanted an object")
    return value
