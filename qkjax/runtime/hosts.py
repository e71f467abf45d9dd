"""Several processes that work on shares of one job, by `jax.distributed`."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np

from qkjax.errors import QkjaxError

Tree = TypeVar("Tree")  # of arrays
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Joins the other processes; before the first computation. On TPU pods, Slurm, Open MPI and Kubernetes
    jax finds them by itself, elsewhere the three environment variables above tell.

    Raises:
      QkjaxError: the variables are not whole numbers, or the others cannot be found.
    """
    import jax

    told = {}
    try:
        if COUNT in os.environ or INDEX in os.environ:
            told = {"num_processes": int(os.environ[COUNT]), "process_id": int(os.environ[INDEX])}
        with _standard_output_free():
            jax.distributed.initialize(**told)
        gather(np.array(0))  # while all are just starting: later one may be long at work before it asks
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise QkjaxError(
            f"cannot join the other processes ({error}); set {ADDRESS}=host:port, {COUNT} and {INDEX} for each"
        ) from error


def own(path: Path) -> Path:
    """The path for this process alone, where there are several."""
    import jax

    if jax.process_count() == 1:
        return path
    return path.with_name(f"{path.stem}-{jax.process_index()}{path.suffix}")


@contextmanager
def _standard_output_free() -> Iterator[None]:
    """Sends what C++ prints to standard error: Gloo reports its connections on standard output, where results go."""
    sys.stdout.flush()
    try:
        output = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(output, 1)
        os.close(output)


def gather(value: Tree) -> Tree:
    """Arrays of every process, stacked along a new first axis, on each of them.

    Raises:
      QkjaxError: a process is gone.
    """
    from jax.experimental import multihost_utils

    try:
        with _standard_output_free():
            return multihost_utils.process_allgather(value)
    except Exception as error:  # each backend has errors of its own
        reason = str(error).partition("\n")[0][:200]
        raise QkjaxError(f"another process has failed, and its own message says why ({reason})") from error


def gather_json(value) -> list:
    """A value that JSON holds from every process, in the order of the processes, on each of them."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(gather(np.array(len(text)))))
    padded = np.frombuffer(text.tobytes().ljust(longest), np.uint8)  # JSON may end in blanks
    return [json.loads(row.tobytes()) for row in np.atleast_2d(gather(padded))]


def agree(settings: Mapping[str, str]) -> None:
    """Makes sure that all processes work on the same thing.

    Raises:
      QkjaxError: on all of them, where they do not; says in what.
    """
    first, *others = gather_json(dict(settings))
    if different := sorted({name for other in others for name in first if other.get(name) != first[name]}):
        raise QkjaxError(
            f"the processes differ in {', '.join(different)}: give all of them the same command, model and images"
        )


def gather_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Named arrays of any shapes from every process, in the order of the processes, on each of them."""
    buffer = BytesIO()
    np.savez(buffer, **{f"array/{name}": array for name, array in arrays.items()})  # `file` is an argument of savez
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.ravel(gather(np.array(len(data))))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    parts = []
    for size, row in zip(sizes, np.atleast_2d(gather(padded)), strict=True):
        with np.load(BytesIO(np.asarray(row)[: int(size)].tobytes()), allow_pickle=False) as file:
            parts.append({name.removeprefix("array/"): file[name] for name in file})
    return parts
