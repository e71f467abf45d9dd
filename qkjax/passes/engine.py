"""Runs a pass over a set of images. A pass can be interrupted and resumed, and can be distributed over processes.

An analysis defines how one batch changes the state of the pass, and how the states of several processes are merged.
This module saves and resumes progress, distributes batches over processes, collects unreadable images and shows a
progress bar.

If a pass is interrupted or killed at any moment, the next call resumes the pass, and the results are bit-identical.
This works because batches depend only on the indices of images, and the same compiled program adds each batch to the
state.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
from tqdm import tqdm

from qkjax.errors import ShardFinished
from qkjax.images.sets import Batch, Unreadable
from qkjax.passes.idle import IdleTime
from qkjax.passes.progress import Progress, resumed, save
from qkjax.passes.shares import (
    Part,
    Rows,
    check_shard,
    concatenated,
    parts_of_hosts,
    path_of_shard,
    require_all_shards,
)
from qkjax.runtime import hosts
from qkjax.runtime.interrupt import deferred_interrupt

State = TypeVar("State")  # a pytree of arrays whose shapes never change

SAVE_SECONDS = 20.0
"""Number of seconds between two saves of the progress."""
IN_FLIGHT = 2
"""Number of batches that an accelerator receives before it has finished the first of them. A CPU receives one batch at
a time, because two would only take more memory."""


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


def batch_groups(count: int, size: int) -> list[range]:
    """Indices of the images in each batch, for a set of `count` images and batches of `size`."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def run_pass(
    step: Callable[[State, Batch], tuple[State, Rows | Callable[[], Rows]]],
    state: State,
    groups: Sequence[Sequence[int]],
    batches: Callable[[Sequence[Sequence[int]]], Iterable[Batch]],
    path: Path | None,
    settings: Mapping[str, str],
    *,
    merge: Callable[[list[State]], State] | None = None,
    shard: tuple[int, int] | None = None,
    bar: tqdm | None = None,
) -> PassResult:
    """Runs a pass from the start, or resumes an interrupted pass.

    With n processes, each process takes every n-th batch. If the processes are hosts of a job (`jax.distributed`), all
    hosts get the whole result. If they are shares, the last share to finish gets it.

    Args:
      step: function that takes the state and a batch, and returns the new state and the rows of the images in the
        batch. The function may donate the buffers of the old state, which is never read again. Instead of the rows, it
        may return a function that waits for the devices and then returns the rows. An accelerator then receives the
        next batch before it has finished this batch.
      state: the state before the first batch.
      groups: indices of the images in each batch.
      batches: function that takes some of the groups and yields their batches, in order.
      path: file in which this process saves its progress; the caller removes the file after saving the result. If
        None, progress is not saved. If `shard` is given, the name of the share is added to the name of the file.
      settings: all settings on which the result depends; see `settings_of`.
      merge: function that merges the states of several processes into one state; required if the state is not empty.
      shard: index of this share and number of shares; None for a pass that is not divided into shares.
      bar: a progress bar that several passes share; by default the pass shows its own bar.

    Raises:
      QkjaxError: a saved pass has different settings or cannot be read, the settings of the hosts differ, or a file
        cannot be written.
      ShardFinished: this share is finished and saved, but another share has not finished.
      KeyboardInterrupt: the user interrupted the pass. The function raises this exception between two batches, after it
        has saved the progress.
    """
    check_shard(path, shard)
    process, processes = shard or (jax.process_index(), jax.process_count())
    if jax.process_count() > 1:
        hosts.agree(settings)

    def share(index: int) -> tuple[Path | None, dict[str, str], list]:
        """The file, the settings and the groups of a process."""
        own_path = path_of_shard(path, index, processes) if shard else path
        return own_path, {**settings, "process": f"{index} of {processes}"}, list(groups[index::processes])

    def part_of(index: int) -> Part:
        """The part of a share that has finished."""
        saved_in, its_settings, its_groups = share(index)
        saved = progress if index == process else resumed(saved_in, its_settings, state, its_groups)
        if saved is None:  # the share that finished last has written the result and removed the file
            raise ShardFinished(process, processes, [index], path.parent)
        return _part(saved, index, processes)

    own_path, own_settings, own = share(process)
    progress = resumed(own_path, own_settings, state, own) or Progress(0, state, [], ())
    progress = _advance(progress, step, own, batches, partial(save, own_path, own_settings), bar)
    parts = [_part(progress, process, processes)]
    if shard:
        require_all_shards(path, shard, [len(groups[index::processes]) for index in range(processes)])
        parts = [part_of(index) for index in range(processes)]
    elif processes > 1:
        parts = parts_of_hosts(parts[0])
    merged = merge([part.state for part in parts]) if merge and processes > 1 else parts[0].state
    rows, unreadable = ([item for part in parts for item in part[field]] for field in (1, 2))
    return PassResult(merged, concatenated(rows), tuple(sorted(unreadable)))


def _part(progress: Progress, process: int, processes: int) -> Part:
    """The part of a process, in which batches have their numbers in the whole pass."""
    rows = [(process + processes * number, row) for number, row in progress.rows]
    return Part(progress.state, rows, progress.unreadable)


def _advance(progress: Progress, step, groups, batches, save, bar: tqdm | None) -> Progress:
    """Runs the remaining batches, and saves progress every `SAVE_SECONDS`, when interrupted, and at the end.

    The progress bar shows the share of time that the devices spend waiting for batches. A large share means that images
    are read too slowly.
    """
    before, remaining = groups[: progress.done], groups[progress.done :]
    saved, done = time.monotonic(), sum(map(len, before))
    ahead = 0 if jax.default_backend() == "cpu" else IN_FLIGHT - 1
    own_bar, idle = bar is None, IdleTime()
    bar = bar if bar is not None else tqdm(total=sum(map(len, groups)), initial=done, unit="img", smoothing=0.1)
    with bar if own_bar else nullcontext(), deferred_interrupt() as check_interrupt, ThreadPoolExecutor(1) as waiting:
        if not own_bar:
            bar.update(done)
        for group, batch in zip(remaining, batches(remaining), strict=True):
            idle.batch_arrived()
            state, rows = step(progress.state, batch)
            future = waiting.submit(idle.finished_after, rows)
            unreadable = (*progress.unreadable, *batch.unreadable)
            progress = Progress(progress.done + 1, state, [*progress.rows, (progress.done, future)], unreadable)
            progress = _arrived(progress, ahead)
            bar.set_postfix_str(f"device idle {idle.share():.0%}", refresh=False)
            bar.update(len(group))
            if time.monotonic() - saved > SAVE_SECONDS:
                save(_arrived(progress))
                saved = time.monotonic()
            try:
                check_interrupt()
            except KeyboardInterrupt:
                save(_arrived(progress))
                raise
        progress = _arrived(progress)
    save(progress)
    return progress


def _arrived(progress: Progress, ahead: int = 0) -> Progress:
    """Waits for the rows of all batches except the last `ahead` batches, which may still be on the devices."""
    first = max(0, len(progress.rows) - IN_FLIGHT)  # earlier rows have arrived
    last = len(progress.rows) - ahead
    rows = [(number, row if isinstance(row, dict) else row.result()) for number, row in progress.rows[first:last]]
    rows = [(number, row) for number, row in rows if row]
    return progress._replace(rows=progress.rows[:first] + rows + progress.rows[max(first, last) :])
