"""Summarises a training run or a sweep in tables with confidence intervals, and in sentences."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.results.rows import Row, format_rows

REFERENCE = "free"
LISTED = 4
"""Largest number of constraints that a sentence lists by name. Any further constraints are only counted."""


def table(dataset: xr.Dataset) -> list[Row]:
    """Makes the table of a sweep: one row per constraint, with values of the last evaluation.

    Args:
      dataset: the dataset of a sweep; see `train.sweep.collect`.

    Returns:
      Rows with the following columns. "constraint" is the name of the constraint, and "seeds" is the number of seeds
      that did not diverge. "accuracy" is the accuracy in percent, and "low" and "high" are the ends of its 95% interval
      over seeds (Student's t). "to_free" is the difference in accuracy from the constraint `free` in percentage points,
      where runs with the same seed are paired. "to_free_low" and "to_free_high" are the ends of the 95% interval of
      this difference, not corrected for the number of rows. "cosine_0", "cosine_1" and so on are the mean weighted
      cosines of the layers. Intervals are NaN if there is a single seed, and differences are NaN if the sweep does not
      include `free`.
    """
    last = 100 * dataset.accuracy.isel(step=-1)
    free = last.sel(constraint=REFERENCE).values if REFERENCE in last.constraint.values else np.nan * last[0].values
    rows = []
    for name in dataset.constraint.values:
        values = last.sel(constraint=name).values
        cosine = dataset.weighted_cosine.sel(constraint=name).isel(step=-1).mean("seed").values
        mean, low, high = interval(values)
        difference, below, above = interval(values - free) if name != REFERENCE else (np.nan,) * 3
        rows.append(
            {
                "constraint": str(name), "seeds": int(np.isfinite(values).sum()),
                "accuracy": mean, "low": low, "high": high,
                "to_free": difference, "to_free_low": below, "to_free_high": above,
                **{f"cosine_{layer}": float(value) for layer, value in enumerate(cosine)},
            }
        )  # fmt: skip
    return rows


def interval(values: Float[np.ndarray, "seeds"]) -> tuple[float, float, float]:
    """The mean of the finite values, and the ends of the 95% interval of the mean (Student's t).

    If fewer than two values are finite, the ends are NaN.
    """
    from scipy.stats import t

    values = values[np.isfinite(values)]
    count = len(values)
    mean = float(np.mean(values)) if count else np.nan
    if count < 2:
        return mean, np.nan, np.nan
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half


def wilson(share: float, count: int) -> tuple[float, float]:
    """The ends of the 95% interval of a share that was measured on `count` independent images (Wilson 1927)."""
    from scipy.stats import norm

    z = float(norm.ppf(0.975))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return float(centre - half), float(centre + half)


def format_table(rows: Sequence[Row]) -> str:
    """Formats the table of a sweep as text, at most 80 characters wide if constraint names have up to 23 characters."""
    short = [
        {
            "constraint": row["constraint"],
            "seeds": row["seeds"],
            "accuracy, %": _number(row["accuracy"], row["low"], row["high"]),
            "to free, points": _number(row["to_free"], row["to_free_low"], row["to_free_high"], "+"),
        }
        for row in rows
    ]
    return format_rows(short, {"constraint": "", "accuracy, %": "", "to free, points": ""})


def _number(value: float, low: float, high: float, sign: str = "") -> str:
    """Formats a value, with its interval if the ends are finite; returns "" for NaN."""
    if not np.isfinite(value):
        return ""
    ends = f" [{low:{sign}.1f}, {high:{sign}.1f}]" if np.isfinite(low) else ""
    return f"{value:{sign}.1f}{ends}"


def run_summary(last: Mapping) -> str:
    """Summarises a finished run in one or two sentences.

    Args:
      last: the result of `train.run.train`.
    """
    accuracy, count = last["accuracy"], last.get("held_out")
    ends = " [{:.1f}, {:.1f}]".format(*(100 * end for end in wilson(accuracy, count))) if count else ""
    images = f"{count:,} held-out images (95% interval over images)" if count else "held-out images"
    sentences = [f"Accuracy is {100 * accuracy:.1f}%{ends} on {images} after {last['step']:,} steps{_chance(last)}."]
    cosines = {layer: value for layer, value in enumerate(last["weighted_cosine"]) if value is not None}
    if len(cosines) > 1:
        high, low = (pick(cosines, key=cosines.get) for pick in (max, min))
        sentences.append(
            f"The weighted cosine of query and key directions is highest in layer {high} ({cosines[high]:.2f}) and "
            f"lowest in layer {low} ({cosines[low]:.2f})."
        )
    return " ".join(sentences)


def _chance(facts: Mapping) -> str:
    """The part of a sentence that states the accuracy expected by chance.

    If always answering the most frequent class is clearly more accurate than chance, its accuracy is added.
    """
    classes, largest = facts.get("classes"), facts.get("largest_class")
    if not classes:
        return ""
    often = f", and always answering the most frequent class has an accuracy of {100 * largest:.1f}%" if largest else ""
    return f"; chance is {100 / classes:.1f}% ({classes} classes){often if (largest or 0) > 1.5 / classes else ''}"


def sweep_summary(rows: Sequence[Row], facts: Mapping) -> str:
    """Summarises a sweep in one to five sentences.

    Args:
      rows: the result of `table`.
      facts: facts about the task: "classes" and "largest_class", if known.
    """
    finished = [row for row in rows if row["seeds"]]
    if not finished:
        return "All runs diverged."
    reference = next((row for row in finished if row["constraint"] == REFERENCE), None)
    first = reference or max(finished, key=lambda row: row["accuracy"])
    text = _number(first["accuracy"], first["low"], first["high"])
    seeds = f"{first['seeds']} seeds (95% interval)" if first["seeds"] > 1 else "one seed, which gives no interval"
    best = "" if reference else ", the highest"
    value, space, ends = text.partition(" ")
    sentences = [f"The accuracy of {first['constraint']} is {value}%{space}{ends} over {seeds}{best}{_chance(facts)}."]
    others = [row for row in finished if row is not reference]
    sentences += _against_free(others) if reference and others else _lowest(others, first)
    if diverged := [str(row["constraint"]) for row in rows if row["seeds"] < max(row["seeds"] for row in rows)]:
        sentences.append(f"Runs with {', '.join(diverged)} diverged and are left out.")
    return " ".join(sentences)


def _against_free(others: Sequence[Row]) -> list[str]:
    """Sentences that list the constraints that are less accurate than `free`, more accurate, or not distinguishable."""
    if not any(np.isfinite(row["to_free_low"]) for row in others):
        listed = _list(sorted(others, key=lambda row: row["to_free"]))
        return [f"Differences from free, in percentage points and without intervals: {listed}."]
    lower = sorted((row for row in others if row["to_free_high"] < 0), key=lambda row: row["to_free"])
    higher = sorted((row for row in others if row["to_free_low"] > 0), key=lambda row: -row["to_free"])
    rest = [row for row in others if not (row["to_free_high"] < 0 or row["to_free_low"] > 0)]
    count = f", not corrected for {len(others)} comparisons" if len(others) > 1 else ""
    how = f"percentage points, 95% interval over seeds{count}"
    groups = (
        (lower, f"Less accurate than free ({how})"),
        (higher, f"More accurate than free ({how})"),
        (rest, f"Not distinguishable from free ({how})"),
    )
    return [f"{words}: {_list(group)}." for group, words in groups if group]


def _lowest(others: Sequence[Row], first: Row) -> list[str]:
    rest = [row for row in others if row is not first]
    if not rest:
        return []
    row = min(rest, key=lambda row: row["accuracy"])
    number = _number(row["accuracy"], row["low"], row["high"])
    return [f"The accuracy of {row['constraint']} is the lowest: {number} (in %)."]


def _list(rows: Sequence[Row]) -> str:
    named = [
        f"{row['constraint']} {_number(row['to_free'], row['to_free_low'], row['to_free_high'], '+')}"
        for row in rows[:LISTED]
    ]
    return ", ".join(named) + (f", and {len(rows) - LISTED} more" if len(rows) > LISTED else "")
