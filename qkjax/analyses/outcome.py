"""Writes and prints the results of all analyses: netCDF files, tables and figures.

An analysis consists of two functions: `compute(...) -> Dataset`, and `describe(dataset) -> Description`. If the folder
already contains a result with the same settings, this result is read instead of being computed again.
"""

import json
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.errors import QkjaxError, ShardFinished
from qkjax.images.sets import ImageSet
from qkjax.passes.shares import path_of_shard
from qkjax.results.rows import Row, list_unreadable, write_csv
from qkjax.results.store import read_earlier, require_own, write_dataset
from qkjax.runtime import hosts
from qkjax.runtime.files import discard, remove, temporaries
from qkjax.runtime.lock import exclusive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Description(NamedTuple):
    """The tables and figures that are written or printed together with a dataset.

    Attributes:
      text: a table for the terminal, at most 80 characters wide.
      rows: the rows that `--json` prints.
      tables: a dict from the stem of a CSV file to its rows.
      figures: a dict from the stem of a figure's files to the function that draws the figure.
      stale: stems of figures to remove before drawing, because they may come from an earlier plan.
    """

    text: str
    rows: Sequence[Row]
    tables: Mapping[str, Sequence[Row]]
    figures: Mapping[str, Callable[[], "Figure"]]
    stale: Sequence[str] = ()


class Written(NamedTuple):
    """A result that has been written to a folder."""

    dataset: xr.Dataset
    description: Description
    folder: Path


def outcome(
    folder: Path,
    stem: str,
    settings: Mapping[str, str] | None,
    compute: Callable[[Path], xr.Dataset],
    describe: Callable[[xr.Dataset], Description],
    *,
    at_least: Sequence[str] = (),
    attrs: Mapping[str, str] | None = None,
    recompute: bool = False,
    fresh: bool = False,
    shard: tuple[int, int] | None = None,
) -> Written:
    """Reads an earlier result from a folder, or computes and writes a new one; then writes tables and figures.

    With several hosts, all hosts compute, and the first host writes. If there are several shares, the last share to
    finish writes.

    Args:
      folder: folder of the results.
      stem: stem of the file names: the dataset is written to stem.nc, and a pass saves its progress in
        stem.partial.npz.
      settings: settings on which the result depends; None for an analysis that is always computed again.
      compute: function that takes the path of the progress file, and returns the dataset.
      describe: function that takes the dataset, and returns tables, figures and text.
      at_least: names of numeric settings. An earlier result may also be used if it has larger values of these settings.
      attrs: additional attributes for the file, such as the path of the checkpoint.
      recompute: whether to compute the result even if there is an earlier result with these settings.
      fresh: whether to discard any earlier result, regardless of its settings, and the progress of an interrupted pass.
      shard: index of this share and number of shares; see `PassOptions`.

    Returns:
      The result, on every host.

    Raises:
      QkjaxError: an earlier result has different settings, another process is using the folder, or a file cannot be
        written. Saved progress stays on disk.
      ShardFinished: this share is finished and saved, but another share has not finished.
    """
    path, partial = folder / f"{stem}.nc", hosts.process_path(folder / f"{stem}.partial.npz")
    shares = [path_of_shard(partial, index, shard[1]) for index in range(shard[1])] if shard else []
    with exclusive(folder, shard):
        if fresh:
            for own in (path, shares[shard[0]] if shard else partial):
                remove(own)
        if settings is None:
            hosts.on_first_host(lambda: require_own(path))
        dataset, is_earlier = _earlier_or_computed(path, partial, settings, compute, at_least, attrs, recompute)
        with exclusive(folder, wait=True) if shard else nullcontext():  # two shares may both be the last one
            if not is_earlier:
                hosts.on_first_host(lambda: write_dataset(dataset, path))  # every host keeps its progress until then
            for file in (partial, *shares):
                remove(file)
            if jax.process_index():
                return Written(dataset, Description("", [], {}, {}), folder)
            description = _described(dataset, describe, path if is_earlier else None)
            files = write_description(description, folder)
            discard(temporaries([path, *files]))  # left by processes that were killed
    return Written(dataset, description, folder)


def _earlier_or_computed(
    path: Path, partial: Path, settings, compute, at_least: Sequence[str], attrs, recompute: bool
) -> tuple[xr.Dataset, bool]:
    """Reads the dataset, or computes it; returns it on every host, and whether it was read."""
    several = jax.process_count() > 1
    earlier = hosts.on_first_host(lambda: read_earlier(path, settings, at_least) if settings is not None else None)
    earlier = None if recompute else earlier
    if several and hosts.gather_json(earlier is not None)[0]:
        earlier = _from_first_host(earlier)
    if earlier is not None:
        return earlier, True
    try:
        dataset = compute(partial).assign_attrs(attrs or {})
    except ShardFinished:
        earlier = read_earlier(path, settings, at_least)  # another share may have written it in the meantime
        if earlier is None:
            raise
        return earlier, True
    return dataset, False


def _described(dataset: xr.Dataset, describe: Callable[[xr.Dataset], Description], path: Path | None) -> Description:
    """The description of a dataset.

    Raises:
      QkjaxError: the dataset was read from `path`, and lacks variables that the description needs. (Results of version
        0.1 have no checksum, so such a file is noticed only here.)
    """
    try:
        return describe(dataset)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        if path is None:
            raise
        raise QkjaxError(f"{path} is not a result of this analysis ({repr(error)[:200]}); remove the file") from error


def _from_first_host(dataset: xr.Dataset | None) -> xr.Dataset:
    """Sends the dataset of the first host to every host."""
    data = dataset.to_netcdf(engine="h5netcdf") if jax.process_index() == 0 else b""
    shared = hosts.gather_arrays({"file": np.frombuffer(bytes(data), np.uint8)})[0]["file"]
    return xr.load_dataset(BytesIO(shared.tobytes()), engine="h5netcdf")


def write_description(description: Description, folder: Path) -> list[Path]:
    """Writes tables and figures of a result, each file atomically; returns the files.

    Raises:
      QkjaxError: a file cannot be written.
    """
    tables = {folder / f"{name}.csv": rows for name, rows in description.tables.items()}
    for path, rows in tables.items():
        write_csv(list(rows), path)
    for name in description.stale:
        for suffix in (".png", ".pdf"):
            remove(folder / f"{name}{suffix}")
    jobs = ((folder / name, (draw(),)) for name, draw in description.figures.items())
    return [*tables, *figures.save_all(jobs, len(description.figures), figures.drawn)]


def report_unreadable(dataset: xr.Dataset, folder: Path, stem: str = "unreadable", what: str = "could not be read"):
    """Writes a CSV file that lists the images that were left out, and prints their number to standard error.

    Only the first host writes and prints.
    """
    if jax.process_index():
        return
    names = "left_out" if "left_out" in dataset else "unreadable"
    list_unreadable(dataset, folder / f"{stem}.csv", names, what)


def print_notes(images: ImageSet) -> None:
    """Prints the notes on an image set to standard error. Only the first host prints."""
    for note in images.notes if jax.process_index() == 0 else ():
        print(f"note: {images.name}: {note}", file=sys.stderr)


def print_outcome(name: str, written: Written, *, as_json: bool = False, next_step: str = "") -> None:
    """Prints the table, the findings in words, and the command to run next.

    With `as_json`, the function prints the rows and the findings as JSON instead. Only the first host prints.
    """
    if jax.process_index():
        return
    dataset, description, folder = written
    summary = str(dataset.attrs.get("summary", ""))
    if as_json:
        print_json([(name, written)])
    else:
        words = textwrap.fill(summary, 80, break_on_hyphens=False)
        print("\n".join(part for part in (name, description.text, words) if part), flush=True)
    count = len(description.figures)
    tables = ", ".join(f"{stem}.csv" for stem in description.tables)
    if count:
        print(f"wrote {tables} and {count} figures (png, pdf) to {folder}", file=sys.stderr)
    if next_step:
        print(f"next: {next_step}", file=sys.stderr)


def print_json(outcomes: Sequence[tuple[str, Written]]) -> None:
    """Prints one JSON document: an object with model, summary and rows, or a list of such objects if there are several.

    Only the first host prints.
    """
    if jax.process_index():
        return
    documents = [
        {
            "model": name,
            "summary": str(dataset.attrs.get("summary", "")),
            "rows": [{key: _finite(value) for key, value in row.items()} for row in description.rows],
        }
        for name, (dataset, description, _) in outcomes
    ]
    print(json.dumps(documents if len(documents) > 1 else documents[0]), flush=True)


def _finite(value: int | float | str) -> int | float | str | None:
    """Replaces NaN and infinity by None, because JSON cannot represent them."""
    return value if isinstance(value, str) or math.isfinite(value) else None
