"""Parses JSON and TOML, and refuses numbers that no setting has, because they would overflow where they are used."""

import json
import tomllib

DIGITS = 30
"""Largest number of digits of a whole number."""


def from_json(text: str | bytes):
    """The value in a JSON text.

    Raises:
      ValueError: the text is not valid JSON, is nested too deeply, or contains a whole number of more than 30 digits.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def from_toml(text: str) -> dict:
    """The table in a TOML text.

    Raises:
      ValueError: the text is not valid TOML, is nested too deeply, or contains a whole number of more than 30 digits.
    """
    try:
        table = tomllib.loads(text)
        _check(table)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return table


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"the number {text[:DIGITS]}... has {len(text)} digits, expected at most {DIGITS}")
    return int(text)


def _check(value) -> None:
    """Raises ValueError if a value contains a whole number that is too large."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check(item)
    elif isinstance(value, int) and abs(value) >= 10**DIGITS:
        raise ValueError(f"a number has more than {DIGITS} digits")
