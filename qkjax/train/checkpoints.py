"""Saves and restores checkpoints of a run. If the last checkpoint is damaged, the one before it is restored."""

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import jax

from qkjax.errors import QkjaxError
from qkjax.runtime import hosts
from qkjax.train.digests import remove_damaged, steps, write_digests
from qkjax.train.step import State

LATEST = 2
"""Number of latest checkpoints that are kept. With two, there is a checkpoint before the last even if the last is the
best."""


class Checkpoints(NamedTuple):
    """The checkpoints of a run.

    Attributes:
      folder: folder of the checkpoints, with one subfolder per step.
      manager: orbax's checkpoint manager.
    """

    folder: Path
    manager: "orbax.checkpoint.CheckpointManager"


@contextmanager
def open_checkpoints(folder: Path) -> Iterator[Checkpoints]:
    """Opens the folder of a run's checkpoints. Damaged checkpoints are logged and removed.

    Raises:
      QkjaxError: all checkpoints are damaged, or a checkpoint cannot be read or written.
    """
    if jax.process_index() == 0:
        remove_damaged(folder)
    if jax.process_count() > 1:
        hosts.agree({"folder": "checked"})  # all other hosts read the folder after this line
    with _quiet():
        manager = _manager(folder)
        try:
            yield Checkpoints(folder, manager)
        except BaseException:
            with suppress(Exception):  # the first error is raised
                manager.close()
            raise
        with _writing(folder):
            manager.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses messages that libraries print about checkpoints; the raised error states the problem.

    Orbax logs every file that it writes, and every error. If a write fails, orbax closes asyncio's event loop, and all
    other writes then report that the loop is closed, or that nobody waited for them.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook

    def without_closed_loops(unraisable) -> None:
        if not re.search(r"Event loop is closed|was never awaited", str(unraisable.exc_value)):
            hook(unraisable)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = without_closed_loops
    warnings.filterwarnings("ignore", ".* was never awaited", RuntimeWarning)
    try:
        yield
        sys.unraisablehook = hook  # after an error, the filter stays, because other threads may print messages later
    finally:
        gc.collect()  # when garbage is collected, asyncio reports errors that nobody has read
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _manager(folder: Path):
    """Makes orbax's checkpoint manager, which first writes each checkpoint under a temporary name."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies
    from orbax.checkpoint.checkpoint_manager import AsyncOptions

    def accuracy(metrics) -> float:
        return metrics["accuracy"]

    kept = policies.AnyPreservationPolicy([policies.LatestN(LATEST), policies.BestN(get_metric_fn=accuracy, n=1)])
    # Without best_fn, orbax does not write metrics, so the metrics of earlier checkpoints are lost when a run resumes.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        best_fn=accuracy,
        async_options=AsyncOptions(post_finalization_callback=lambda: write_digests(folder)),
    )
    try:
        manager = ocp.CheckpointManager(folder.resolve(), options=options)
        for step in set(manager.all_steps()) - {*sorted(manager.all_steps())[-LATEST:], manager.best_step()}:
            manager.delete(step)  # from a run that was killed before it could delete this
    except Exception as error:  # orbax raises many types of errors
        raise QkjaxError(f"cannot open {folder} ({_reason(error)}): remove it to train from the first step") from error
    return manager


def save_state(checkpoints: Checkpoints, state: State, line: dict) -> None:
    """Writes a checkpoint and its line of metrics in the background.

    Raises:
      QkjaxError: the previous checkpoint or this checkpoint cannot be written.
    """
    import orbax.checkpoint as ocp

    with _writing(checkpoints.folder):
        args = ocp.args.StandardSave(state._asdict())
        checkpoints.manager.save(int(state.step), args=args, metrics=line)


def wait_until_saved(checkpoints: Checkpoints) -> None:
    """Waits until the current checkpoint has been written.

    Raises:
      QkjaxError: the checkpoint cannot be written.
    """
    with _writing(checkpoints.folder):
        checkpoints.manager.wait_until_finished()


def restore_state(checkpoints: Checkpoints, shapes: State) -> tuple[State, dict] | None:
    """Restores the state and the line of metrics from the last checkpoint; returns None if there is no checkpoint.

    The state has the shardings of `shapes`. In a run of version 0.1.0, the line has only step and accuracy.

    Raises:
      QkjaxError: the checkpoint cannot be read.
    """
    import orbax.checkpoint as ocp

    present = steps(checkpoints.folder)
    if not present:
        return None
    try:
        args = ocp.args.StandardRestore(shapes._asdict())
        state = State(**checkpoints.manager.restore(present[-1], args=args))
        return state, {"step": int(state.step)} | dict(checkpoints.manager.metrics(present[-1]) or {})
    except Exception as error:  # orbax raises many types of errors
        path = checkpoints.folder / str(present[-1])
        before = f"resume from step {present[-2]}" if present[1:] else "train from the first step"
        raise QkjaxError(f"cannot read the checkpoint {path} ({_reason(error)}): remove it to {before}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Converts orbax's errors to QkjaxError.

    Raises:
      QkjaxError: orbax raised an error.
    """
    try:
        yield
    except Exception as error:  # orbax raises many types of errors
        raise QkjaxError(
            f"cannot write {folder}: {_reason(error)}; choose another folder or free some space"
        ) from error


def _reason(error: Exception) -> str:
    """Shortens an error message of orbax, which lists arrays and files at length."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    known = (os.strerror(number) for number in range(1, 133))
    return next((words for words in known if words in text), text[:150])
