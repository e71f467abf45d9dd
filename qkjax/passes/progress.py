"""Saves the progress of a pass to a file, and restores it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.sets import Unreadable
from qkjax.passes.partial_file import read_partial, write_partial
from qkjax.passes.shares import Rows, batch_numbers, concatenated


class Progress(NamedTuple):
    """The progress of a pass. Each batch replaces the whole tuple, so that no batch can be counted twice.

    Attributes:
      done: number of batches that are done.
      state: the state after these batches.
      rows: the number of each batch, and its rows.
      unreadable: index and reason for each image that could not be read.
    """

    done: int
    state: object
    rows: list[tuple[int, Rows]]
    unreadable: Unreadable


def save(path: Path | None, settings: Mapping[str, str], progress: Progress) -> None:
    """Writes the progress of a pass to a file, or does nothing if `path` is None.

    Raises:
      QkjaxError: the file cannot be written.
    """
    if path is None:
        return
    leaves = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(progress.state))}
    rows = {f"rows/{name}": value for name, value in concatenated(progress.rows).items()}
    rows |= {f"batch/{name}": value for name, value in batch_numbers(progress.rows).items()}
    write_partial(path, settings, {"done": np.array(progress.done), **leaves, **rows}, progress.unreadable)


def resumed(path: Path | None, settings: Mapping[str, str], state, groups: Sequence) -> Progress | None:
    """Reads the progress of an interrupted pass; returns None if there is no interrupted pass.

    Raises:
      QkjaxError: the interrupted pass has different settings, or its arrays do not fit this pass.
    """
    saved = read_partial(path, settings) if path else None
    if saved is None:
        return None
    try:
        return _restored(*saved, state, groups)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        advice = "remove this file to start again, or pass fresh=True"
        raise QkjaxError(f"cannot resume from {path} ({error}); {advice}") from error


def _restored(arrays: Rows, unreadable: Unreadable, state, groups: Sequence[Sequence[int]]) -> Progress:
    """Rebuilds the progress of a pass from saved arrays.

    Raises:
      LookupError, ValueError, TypeError, ArithmeticError: the arrays do not fit this pass.
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
        and ("index" not in rows or images.issuperset(rows["index"][0].ravel().tolist()))
    ):
        raise ValueError("the saved arrays do not fit this pass")
    by_batch = [(n, {k: x[numbers == n] for k, (x, numbers) in rows.items()}) for n in range(done)] if rows else []
    return Progress(done, jax.tree.unflatten(structure, restored), by_batch, unreadable)
