"""Uses `jax.distributed` to connect several processes, each of which computes a share of one job."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np

from qkjax.errors import QkjaxError

Tree = TypeVar("Tree")  # a pytree of arrays
Result = TypeVar("Result")
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Connects this process to the other processes of the job. Call this function before the first computation.

    On TPU pods, Slurm, Open MPI and Kubernetes, JAX detects the processes. Elsewhere, the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID specify the processes.

    Raises:
      QkjaxError: an environment variable is not a whole number, or the other processes cannot be reached.
    """
    import jax

    settings = {}
    try:
        if COUNT in os.environ or INDEX in os.environ:
            settings = {"num_processes": int(os.environ[COUNT]), "process_id": int(os.environ[INDEX])}
        with _standard_output_free():
            jax.distributed.initialize(**settings)
        gather(np.array(0))  # connect now; otherwise a process could compute for a long time before it connects
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise QkjaxError(
            f"cannot join the other processes ({error}); set {ADDRESS}=host:port, {COUNT} and {INDEX} for each process"
        ) from error


def process_path(path: Path) -> Path:
    """Adds the index of this process to the name in a path. If there is only one process, the path is unchanged."""
    import jax

    return path if jax.process_count() == 1 else path_of_share(path, str(jax.process_index()))


def path_of_share(path: Path, share: str) -> Path:
    """Inserts the name of a share into a path, before the suffix."""
    return path.with_name(f"{path.stem}-{share}{path.suffix}")


@contextmanager
def _standard_output_free() -> Iterator[None]:
    """Redirects C++ output to standard error, because Gloo prints messages about its connections to standard output."""
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
    """Stacks the arrays of all processes along a new first axis; every process gets the result.

    Raises:
      QkjaxError: another process has failed.
    """
    from jax.experimental import multihost_utils

    try:
        with _standard_output_free():
            return multihost_utils.process_allgather(value)
    except Exception as error:  # the type of the error depends on the backend
        reason = str(error).partition("\n")[0][:200]
        raise QkjaxError(
            f"another process has failed ({reason}): see the error message of that process, then restart all processes"
        ) from error


def gather_json(value) -> list:
    """Collects a JSON value from every process, in the order of the processes; every process gets all values."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(gather(np.array(len(text)))))
    padded = np.frombuffer(text.tobytes().ljust(longest), np.uint8)  # JSON ignores trailing blanks
    return [json.loads(row.tobytes()) for row in np.atleast_2d(gather(padded))]


def on_first_host(function: Callable[[], Result]) -> Result | None:
    """Calls a function on the first process; every process waits until it returns. The result is None on other
    processes.

    Raises:
      QkjaxError: the function failed with this error. Every process raises the error, so that none waits for the first
        one.
    """
    import jax

    result, problem, several = None, "", jax.process_count() > 1
    if jax.process_index() == 0:
        try:
            result = function()
        except QkjaxError as error:
            if not several:
                raise
            problem = str(error)
    if several and (problem := gather_json(problem)[0]):
        raise QkjaxError(problem)
    return result


def agree(settings: Mapping[str, str]) -> None:
    """Checks that all processes have the same settings.

    Raises:
      QkjaxError: the settings differ. Every process raises the error, and the message names the settings that differ.
    """
    first, *others = gather_json(dict(settings))
    if different := sorted({name for other in others for name in first if other.get(name) != first[name]}):
        raise QkjaxError(
            f"the processes differ in {', '.join(different)}: start all of them with the same command, model and images"
        )


def gather_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Collects named arrays of any shape from every process, in the order of the processes.

    Every process gets the arrays of all processes.
    """
    buffer = BytesIO()
    # The prefix avoids a clash with the argument `file` of savez.
    np.savez(buffer, **{f"array/{name}": array for name, array in arrays.items()})
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.ravel(gather(np.array(len(data))))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    parts = []
    for size, row in zip(sizes, np.atleast_2d(gather(padded)), strict=True):
        with np.load(BytesIO(np.asarray(row)[: int(size)].tobytes()), allow_pickle=False) as file:
            parts.append({name.removeprefix("array/"): file[name] for name in file})
    return parts
