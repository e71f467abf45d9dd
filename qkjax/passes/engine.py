"""Runs a pass over a set of images. A pass can be interrupted and resumed, and can use several hosts.

An analysis defines how one batch changes the state of the pass, and how the states of several hosts are merged. This
module saves and resumes progress, distributes batches over hosts, collects unreadable images and shows a progress bar.

If a pass is interrupted or killed at any moment, the next call resumes the pass, and the results are bit-identical.
This works because batches depend only on the indices of images, and the same compiled program adds each batch to the
state.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from qkjax.errors import QkjaxError
from qkjax.images.sets import Batch, Unreadable
from qkjax.passes.partial_file import read_partial, write_partial
from qkjax.runtime import hosts
from qkjax.runtime.interrupt import deferred_interrupt

State = TypeVar("State")  # a pytree of arrays whose shapes never change
Rows = dict[str, np.ndarray]  # arrays with one row per image, or per batch

SAVE_SECONDS = 20.0
"""Number of seconds between two saves of the progress."""


class PassResult(NamedTuple):
    """The result of a pass, on every host.

    Attributes:
      state: the state after the last batch.
      rows: the rows of all batches, concatenated in the order of the batches.
      unreadable: index and reason for each image that could not be read, sorted by index.
    """

    state: object
    rows: Rows
    unreadable: Unreadable


class _Progress(NamedTuple):
    """The progress of a pass. Each batch replaces the whole tuple, so that no batch can be counted twice."""

    done: int
    state: object
    rows: list[tuple[int, Rows]]
    unreadable: Unreadable


def batch_groups(count: int, size: int) -> list[range]:
    """Indices of the images in each batch, for a set of `count` images and batches of `size`."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def run_pass(
    step: Callable[[State, Batch], tuple[State, Rows]],
    state: State,
    groups: Sequence[Sequence[int]],
    batches: Callable[[Sequence[Sequence[int]]], Iterable[Batch]],
    path: Path | None,
    settings: Mapping[str, str],
    *,
    merge: Callable[[list[State]], State] | None = None,
    bar: tqdm | None = None,
) -> PassResult:
    """Runs a pass from the start, or resumes an interrupted pass.

    With n hosts (`jax.distributed`), each host takes every n-th batch, and all hosts get the whole result.

    Args:
      step: function that takes the state and a batch, and returns the new state and the rows of the images in the
        batch. The function may donate the buffers of the old state, which is never read again.
      state: the state before the first batch.
      groups: indices of the images in each batch.
      batches: function that takes some of the groups and yields their batches, in order.
      path: file in which this host saves its progress; the caller removes the file after saving the result. If None,
        progress is not saved.
      settings: all settings on which the result depends; see `settings_of`.
      merge: function that merges the states of several hosts into one state; required if the state is not empty.
      bar: a progress bar that several passes share; by default the pass shows its own bar.

    Raises:
      QkjaxError: a saved pass has different settings or cannot be read, the settings of the hosts differ, or a file
        cannot be written.
      KeyboardInterrupt: the user interrupted the pass. The function raises it between two batches, after it has saved
        the progress.
    """
    process, processes = jax.process_index(), jax.process_count()
    if processes > 1:
        hosts.agree(settings)
    settings = {**settings, "process": f"{process} of {processes}"}
    own = list(groups[process::processes])
    progress = _resumed(path, settings, state, own) or _Progress(0, state, [], ())
    progress = _advance(progress, step, own, batches, lambda p: _save(path, settings, p), bar)
    states, rows, unreadable = [progress.state], progress.rows, progress.unreadable
    rows = [(process + processes * number, row) for number, row in rows]
    if processes > 1:
        states, rows, unreadable = _gathered(progress.state, rows, unreadable)
    merged = merge(states) if merge and processes > 1 else states[0]
    return PassResult(merged, _concatenated(rows), tuple(sorted(unreadable)))


def with_waits(work: Iterable[State]) -> Iterator[tuple[float, State]]:
    """Yields, for each item, the number of seconds spent waiting for the item, and the item."""
    remaining = iter(work)
    while True:
        start = time.monotonic()
        try:
            item = next(remaining)
        except StopIteration:
            return
        yield time.monotonic() - start, item


def _advance(progress: _Progress, step, groups, batches, save, bar: tqdm | None) -> _Progress:
    """Runs the remaining batches, and saves progress every `SAVE_SECONDS`, when interrupted, and at the end.

    The progress bar shows the share of time that the device spends waiting for batches. A large share means that images
    are read too slowly.
    """
    before, remaining = groups[: progress.done], groups[progress.done :]
    began = saved = time.monotonic()
    waited, done = 0.0, sum(map(len, before))
    own_bar = bar is None
    bar = bar if bar is not None else tqdm(total=sum(map(len, groups)), initial=done, unit="img", smoothing=0.1)
    with bar if own_bar else nullcontext(), deferred_interrupt() as check_interrupt:
        if not own_bar:
            bar.update(done)
        for group, (seconds, batch) in zip(remaining, with_waits(batches(remaining)), strict=True):
            state, rows = step(progress.state, batch)
            all_rows = [*progress.rows, (progress.done, rows)] if rows else progress.rows
            progress = _Progress(progress.done + 1, state, all_rows, (*progress.unreadable, *batch.unreadable))
            waited += seconds
            bar.set_postfix_str(f"device idle {waited / (time.monotonic() - began):.0%}", refresh=False)
            bar.update(len(group))
            if time.monotonic() - saved > SAVE_SECONDS:
                save(progress)
                saved = time.monotonic()
            try:
                check_interrupt()
            except KeyboardInterrupt:
                save(progress)
                raise
    save(progress)
    return progress


def _save(path: Path | None, settings: Mapping[str, str], progress: _Progress) -> None:
    if path is None:
        return
    leaves = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(progress.state))}
    rows = {f"rows/{name}": value for name, value in _concatenated(progress.rows).items()}
    rows |= {f"batch/{name}": value for name, value in _batch_numbers(progress.rows).items()}
    write_partial(path, settings, {"done": np.array(progress.done), **leaves, **rows}, progress.unreadable)


def _resumed(path: Path | None, settings: Mapping[str, str], state, groups: Sequence) -> _Progress | None:
    """Reads the progress of an interrupted pass; returns None if there is no interrupted pass.

    Raises:
      QkjaxError: the interrupted pass has different settings, or its arrays do not fit this pass.
    """
    saved = read_partial(path, settings) if path else None
    if saved is None:
        return None
    try:
        return _restored(*saved, state, groups)
    except (LookupError, ValueError, TypeError) as error:
        raise QkjaxError(f"cannot resume from {path} ({error}); remove this file to start again") from error


def _restored(arrays: Rows, unreadable: Unreadable, state, groups: Sequence[Sequence[int]]) -> _Progress:
    """Rebuilds the progress of a pass from saved arrays.

    Raises:
      LookupError, ValueError, TypeError: the arrays do not fit this pass.
    """
    leaves, structure = jax.tree.flatten(state)
    done = int(arrays["done"])
    restored = [arrays[f"state{i}"] for i in range(sum(name.startswith("state") for name in arrays))]
    names = [name.removeprefix("rows/") for name in arrays if name.startswith("rows/")]
    rows = {name: (arrays[f"rows/{name}"], arrays[f"batch/{name}"]) for name in names}
    images = {int(index) for group in groups[:done] for index in group}
    if not (
        0 <= done <= len(groups)
        and len(restored) == len(leaves)
        and all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(restored, leaves, strict=True))
        and all(numbers.shape == x.shape[:1] for x, numbers in rows.values())
        and all(np.isin(numbers, range(done)).all() for _, numbers in rows.values())
        and images.issuperset(index for index, _ in unreadable)
    ):
        raise ValueError("the saved arrays do not fit this pass")
    by_batch = [(n, {k: x[numbers == n] for k, (x, numbers) in rows.items()}) for n in range(done)] if rows else []
    return _Progress(done, jax.tree.unflatten(structure, restored), by_batch, unreadable)


def _concatenated(rows: list[tuple[int, Rows]]) -> Rows:
    ordered = [row for _, row in sorted(rows, key=lambda item: item[0])]
    return {name: np.concatenate([row[name] for row in ordered]) for name in (ordered[0] if ordered else ())}


def _batch_numbers(rows: list[tuple[int, Rows]]) -> Rows:
    """For each row in the result of `_concatenated`, the number of the batch from which the row comes."""
    ordered = sorted(rows, key=lambda item: item[0])
    names = ordered[0][1] if ordered else ()
    return {name: np.concatenate([np.full(len(row[name]), number) for number, row in ordered]) for name in names}


def _gathered(state, rows: list[tuple[int, Rows]], unreadable: Unreadable):
    """Collects the states, rows and unreadable images of all hosts. Every host gets the same result."""
    leaves, structure = jax.tree.flatten(state)
    states = [
        jax.tree.unflatten(structure, [part[str(i)] for i in range(len(leaves))])
        for part in hosts.gather_arrays({str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    ]
    columns = {f"rows/{k}": v for k, v in _concatenated(rows).items()}
    columns |= {f"batch/{k}": v for k, v in _batch_numbers(rows).items()}
    everywhere = []
    for part in hosts.gather_arrays(columns):
        names = [name.removeprefix("rows/") for name in part if name.startswith("rows/")]
        for number in np.unique(np.concatenate([part[f"batch/{n}"] for n in names])) if names else ():
            row = {name: part[f"rows/{name}"][part[f"batch/{name}"] == number] for name in names}
            everywhere.append((int(number), row))
    listed = [(int(i), str(reason)) for items in hosts.gather_json(unreadable) for i, reason in items]
    return states, everywhere, listed
