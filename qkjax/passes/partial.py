"""Passes over images that can be interrupted: what one has done so far lies in a file, from which the next goes on."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.runtime.interrupt import held

State, Work = TypeVar("State"), TypeVar("Work")

SAVE_SECONDS = 20.0
"""Between two times that it is written."""
Unreadable = tuple[tuple[int, str], ...]
"""Index and reason of images that could not be read."""


def go_through(
    state: State,
    work: Iterable[tuple[int, Work]],
    step: Callable[[State, Work], State],
    save: Callable[[State], None],
    total: int,
    done: int,
) -> State:
    """The state after all steps, with a progress bar; saved every so often, at the end, and when interrupted.

    The bar says for what share of the time the device waits for batches: where it is large, images are read too slowly.

    Args:
      work: number of images and what the step takes, batch by batch.
      step: gives a new state, and may use up the old one (donate its buffers), which is never looked at again: where
        a step fails, its error goes up, and what was saved before stays.
      total, done: images of all work, and of what was done before.

    Raises:
      KeyboardInterrupt: between two steps; what was done is saved.
    """
    began = saved = time.monotonic()
    waited = 0.0
    with tqdm(total=total, initial=done, unit="img", smoothing=0.1) as bar, held() as interrupted:
        for seconds, (count, item) in with_waits(work):
            state = step(state, item)
            waited += seconds
            bar.set_postfix_str(f"device idle {waited / (time.monotonic() - began):.0%}", refresh=False)
            bar.update(count)
            if time.monotonic() - saved > SAVE_SECONDS:
                save(state)
                saved = time.monotonic()
            try:
                interrupted()
            except KeyboardInterrupt:
                save(state)
                raise
    save(state)
    return state


def with_waits(work: Iterable[Work]) -> Iterator[tuple[float, Work]]:
    """Each item, with the seconds that it was waited for."""
    remaining = iter(work)
    while True:
        start = time.monotonic()
        try:
            item = next(remaining)
        except StopIteration:
            return
        yield time.monotonic() - start, item


def write_unfinished(
    path: Path, settings: Mapping[str, str], arrays: Mapping[str, np.ndarray], unreadable: Unreadable
) -> None:
    """Writes arrays, by any names but these two: settings and unreadable. Atomic.

    Raises:
      QkjaxError: the file cannot be written.
    """
    texts = {"settings": json.dumps(dict(settings)), "unreadable": json.dumps(unreadable)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, **{name: np.array(text) for name, text in texts.items()})


def read_unfinished(path: Path, settings: Mapping[str, str]) -> tuple[dict[str, np.ndarray], Unreadable] | None:
    """The arrays, and what could not be read; None without such a file.

    Raises:
      QkjaxError: it is of other settings, or cannot be read.
    """
    if not path.exists():
        return None
    advice = f"remove {path} to begin anew"
    try:
        # numpy leaves a file that it cannot read open, unless it is given one that is
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
        was, unreadable = (json.loads(str(arrays.pop(name))) for name in ("settings", "unreadable"))
        unreadable = tuple((int(index), str(reason)) for index, reason in unreadable)
    except Exception as error:  # zipfile, numpy and json raise whatever they stumble over
        raise QkjaxError(f"{path}, of an unfinished scan, cannot be read ({error}); {advice}") from error
    if other := [name for name in settings if settings[name] != was.get(name)]:
        raise QkjaxError(
            f"{path} is of an unfinished scan with other settings ({', '.join(other)}): repeat those, or {advice}"
        )
    return arrays, unreadable
