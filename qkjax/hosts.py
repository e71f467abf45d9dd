"""Several processes that work on shares of one job, by `jax.distributed`."""

import json
import os
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError

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
        jax.distributed.initialize(**told)
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


def gather(value):
    """Arrays of every process, stacked along a new first axis, on each of them."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(value)


def gather_json(value) -> list:
    """A value that JSON holds from every process, in the order of the processes, on each of them."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(gather(np.array(len(text)))))
    padded = np.frombuffer(text.tobytes().ljust(longest), np.uint8)  # JSON may end in blanks
    return [json.loads(row.tobytes()) for row in np.atleast_2d(gather(padded))]
