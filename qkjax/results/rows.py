"""Formats tables (lists of rows) as text, and writes tables to CSV files."""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.runtime.files import atomic_path, remove
from qkjax.runtime.visible import visible

Row = dict[str, int | float | str]
FORMULAS = ("=", "+", "-", "@")
"""Characters that make a spreadsheet interpret a cell as a formula if they are at the start of the cell."""


def head_mean(values) -> np.ndarray:
    """The mean over heads (last axis) whose value is finite; NaN if no head of a layer has a finite value."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(-1) / finite.sum(-1)


def write_csv(rows: list[Row], path: Path) -> None:
    """Writes rows to a CSV file atomically. All rows have the same columns as the first row.

    Raises:
      QkjaxError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: int | float | str) -> int | float | str:
    """Converts a value for a CSV file: escapes hidden characters, and strings that look like formulas."""
    if not isinstance(value, str):
        return value
    shown = visible(value)
    return f"'{shown}" if shown.startswith(FORMULAS) else shown


def list_unreadable(data: xr.Dataset, path: Path, names: str = "unreadable", what: str = "could not be read") -> None:
    """Writes a CSV file with the names of the images that could not be read, and the reasons.

    If all images could be read, the function removes the file of an earlier pass.

    Args:
      data: the result of a pass, with the variable `reason`.
      path: the CSV file to write.
      names: name of the variable that contains the names of these images.
      what: the verb phrase of the printed message, such as "could not be read" in "3 images could not be read".
    """
    remove(path)
    if broken := [str(name) for name in data[names].values]:
        rows = [{"image": n, "reason": str(r)} for n, r in zip(broken, data.reason.values, strict=True)]
        write_csv(rows, path)
        print(f"{len(broken)} images {what}; {path} lists the reasons", file=sys.stderr)


def format_rows(rows: list[Row], formats: Mapping[str, str] | None = None) -> str:
    """Formats rows as text, with right-aligned columns. By default, floats have three decimal places."""
    heads = list(rows[0])
    spec = {head: "d" if isinstance(rows[0][head], int) else ".3f" for head in heads} | dict(formats or {})
    cells = [[format(row[head], spec[head]) for head in heads] for row in rows]
    widths = [max(len(head), *(len(line[i]) for line in cells)) for i, head in enumerate(heads)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [heads, *cells])
