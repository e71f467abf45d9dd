"""Distributes a pass over processes, and combines the states, rows and unreadable images of all processes.

The processes are either hosts of one job, which communicate (`jax.distributed`), or shares, which only write files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from qkjax.errors import QkjaxError, ShardFinished
from qkjax.images.sets import Unreadable
from qkjax.passes.partial_file import batches_done
from qkjax.runtime import hosts

Rows = dict[str, np.ndarray]  # arrays with one row per image, or per batch


class Part(NamedTuple):
    """The part of a pass that one process computes.

    Attributes:
      state: the state after the batches of this process.
      rows: the number of each batch, and its rows.
      unreadable: index and reason for each image that could not be read.
    """

    state: object
    rows: list[tuple[int, Rows]]
    unreadable: Unreadable


def path_of_shard(path: Path, index: int, count: int) -> Path:
    """The path of the file in which one share of a pass saves its progress."""
    return hosts.path_of_share(path, f"{index}-of-{count}")


def require_all_shards(path: Path, shard: tuple[int, int], batches: Sequence[int]) -> None:
    """Checks that all shares have finished. Of each file, only the number of batches is read.

    Args:
      path: the file of the pass, from which `path_of_shard` derives the file of each share.
      shard: index of this share, and number of shares.
      batches: number of batches of each share.

    Raises:
      ShardFinished: another share has not finished.
    """
    index, count = shard
    done = [batches_done(path_of_shard(path, other, count)) for other in range(count)]
    if missing := [other for other in range(count) if done[other] is None or done[other] < batches[other]]:
        raise ShardFinished(index, count, missing, path.parent)


def parts_of_hosts(own: Part) -> list[Part]:
    """Collects the parts of all hosts. Every host gets the same result."""
    leaves, structure = jax.tree.flatten(own.state)
    states = [
        jax.tree.unflatten(structure, [part[str(i)] for i in range(len(leaves))])
        for part in hosts.gather_arrays({str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    ]
    columns = {f"rows/{k}": v for k, v in concatenated(own.rows).items()}
    columns |= {f"batch/{k}": v for k, v in batch_numbers(own.rows).items()}
    rows = [_by_batch(part) for part in hosts.gather_arrays(columns)]
    unreadable = [tuple((int(i), str(reason)) for i, reason in items) for items in hosts.gather_json(own.unreadable)]
    return [Part(*part) for part in zip(states, rows, unreadable, strict=True)]


def _by_batch(columns: Rows) -> list[tuple[int, Rows]]:
    """Splits the columns of one host into the rows of its batches."""
    names = [name.removeprefix("rows/") for name in columns if name.startswith("rows/")]
    numbers = np.unique(np.concatenate([columns[f"batch/{n}"] for n in names])) if names else ()
    return [
        (int(number), {name: columns[f"rows/{name}"][columns[f"batch/{name}"] == number] for name in names})
        for number in numbers
    ]


def concatenated(rows: Sequence[tuple[int, Rows]]) -> Rows:
    """Concatenates the rows of all batches, in the order of the batches."""
    ordered = [row for _, row in sorted(rows, key=lambda item: item[0])]
    return {name: np.concatenate([row[name] for row in ordered]) for name in (ordered[0] if ordered else ())}


def batch_numbers(rows: Sequence[tuple[int, Rows]]) -> Rows:
    """For each row in the result of `concatenated`, the number of the batch from which the row comes."""
    ordered = sorted(rows, key=lambda item: item[0])
    names = ordered[0][1] if ordered else ()
    return {name: np.concatenate([np.full(len(row[name]), number) for number, row in ordered]) for name in names}


def check_shard(path: Path | None, shard: tuple[int, int] | None) -> None:
    """Checks that the result of a share can be saved.

    Raises:
      QkjaxError: there is no file to save to, or this process is one of several hosts.
    """
    if shard is not None and (path is None or jax.process_count() > 1):
        reason = (
            "there is no file for its result; pass partial=..." if path is None else "several hosts share this pass"
        )
        raise QkjaxError(f"shard={shard[0]}/{shard[1]}: {reason}, or remove shard=...")
