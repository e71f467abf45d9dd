"""Manages the folder of a run: checks which run it contains and how far it got, and removes leftover files."""

import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path, discard, read_bytes, temporaries
from qkjax.runtime.lock import LOCK, exclusive, exclusive_here
from qkjax.train.config import TrainConfig
from qkjax.train.digests import steps, unfinished
from qkjax.train.records import evaluations, read_config, read_metrics, write_config

CONFIG, METRICS, CHECKPOINTS, MODEL, BOARD = "config.json", "metrics.jsonl", "checkpoints", "model.npz", "tensorboard"
DATA, FACTS, START, ENVIRONMENT = "data.txt", "task.json", "start.txt", "environment.json"
# A run writes its configuration first, and discards it last.
OWN = (METRICS, MODEL, DATA, FACTS, START, ENVIRONMENT, CONFIG)
log = logging.getLogger(__name__)


def earlier_metrics(folder: Path, config: TrainConfig) -> list[dict]:
    """The metrics of the run in a folder; empty if the run has no checkpoint.

    Raises:
      QkjaxError: the folder contains a checkpoint of another run, or its configuration or metrics are not valid, or it
        contains files with the names of a run's files that no run wrote.
    """
    if not steps(folder / CHECKPOINTS):
        _require_no_foreign(folder)
        return []
    earlier = read_config(folder / CONFIG)
    if earlier is None:
        raise QkjaxError(
            f"{folder / CHECKPOINTS} contains the checkpoints of a run, but {CONFIG} is missing: restore this file, "
            f"or remove {folder}"
        )
    pairs = zip(earlier.to_dict().items(), config.to_dict().values(), strict=True)
    if other := [f"{name}={value!r}" for (name, value), wanted in pairs if value != wanted]:
        raise QkjaxError(f"{folder} contains a run with {', '.join(other)}: choose another folder, or pass fresh=True")
    return read_metrics(folder / METRICS, config)


def _require_no_foreign(folder: Path) -> None:
    """Checks that a run without checkpoints would replace only files of an earlier run, which has a configuration.

    Raises:
      QkjaxError: the folder contains other files with the names of a run's files.
    """
    try:
        is_run = read_config(folder / CONFIG) is not None
    except QkjaxError:
        is_run = False
    present = [name for name in (*OWN, CHECKPOINTS, BOARD) if os.path.lexists(folder / name)]
    foreign = [name for name in present if not (is_run if name in OWN else (folder / name).is_dir())]
    if foreign:
        raise QkjaxError(
            f"{folder} contains {foreign[0]}, which is not part of a run and would be replaced: choose another folder, "
            "or pass fresh=True to replace it"
        )


def is_finished(folder: Path, config: TrainConfig, lines: list[dict]) -> bool:
    """Whether a run with these metrics is complete and has exported its model. A damaged model is logged."""
    model = folder / MODEL
    if len(lines) < len(evaluations(config)) or not model.is_file():
        return False
    try:
        with zipfile.ZipFile(model) as file:
            damaged = file.testzip() is not None
    except Exception:  # zipfile raises many types of errors
        damaged = True
    if damaged:
        log.warning("%s is damaged and is exported again from the last checkpoint", model)
    return not damaged


def resumed_lines(folder: Path, config: TrainConfig, own: dict) -> list[dict]:
    """Reads the metrics up to a checkpoint.

    Args:
      folder: folder of the run.
      config: the run.
      own: the line that is stored in the checkpoint, which replaces the same line in the file.

    Raises:
      QkjaxError: an earlier line is missing or not valid.
    """
    expected = [step for step in evaluations(config) if step <= own["step"]]
    lines = earlier_metrics(folder, config)[: len(expected)]
    if "loss" in own and len(lines) >= len(expected) - 1:
        if len(lines) < len(expected):
            log.warning("%s has lost its last line, which is restored from the checkpoint", folder / METRICS)
        lines = [*lines[: len(expected) - 1], own]
    if [line["step"] for line in lines] != expected:
        raise QkjaxError(
            f"{folder / METRICS} has only {len(lines)} of the {len(expected)} lines up to step {own['step']}: restore "
            f"this file, or remove {folder}"
        )
    return lines


def identify(folder: Path, config: TrainConfig, fingerprint: str, start: str) -> None:
    """Writes the run's configuration and the fingerprints of its data and its start, unless the run has a checkpoint.

    Raises:
      QkjaxError: the run has a checkpoint that was trained on different data.
    """
    resumes = bool(steps(folder / CHECKPOINTS))
    if resumes:
        require_same_data(folder, config, fingerprint)
    elif jax.process_index() == 0:
        write_config(folder / CONFIG, config)
        for name, text in ((DATA, fingerprint), (START, start)):
            if text or name == DATA:
                with atomic_path(folder / name) as temporary:
                    temporary.write_text(text)


def require_same_data(folder: Path, config: TrainConfig, fingerprint: str) -> None:
    """Checks that the data of a run have not changed since the run began.

    Raises:
      QkjaxError: the data have changed.
    """
    earlier = read_bytes(folder / DATA)
    if earlier is not None and earlier.decode(errors="replace") != fingerprint:
        raise QkjaxError(
            f"data={config.data!r} has changed since the run in {folder} began: restore its files, choose another "
            f"folder, or pass fresh=True; if only {DATA} has changed, remove that"
        )


def require_same_start(folder: Path, config: TrainConfig, start: str) -> None:
    """Checks that the checkpoint from which a run started has not changed since the run began.

    Raises:
      QkjaxError: the checkpoint has other parameters. Runs of version 0.1 do not state their start.
    """
    earlier = read_bytes(folder / START)
    if start and earlier is not None and earlier.decode(errors="replace") != start:
        raise QkjaxError(
            f"start={config.start!r} has changed since the run in {folder} began: restore it, choose another folder, "
            f"or pass fresh=True; if only {START} has changed, remove that"
        )


def discard_run(folder: Path) -> None:
    """Removes the files of a run from a folder, whatever their state.

    Raises:
      QkjaxError: another process is using the folder.
    """
    with only_process(folder):
        if jax.process_index() == 0:
            discard(folder / name for name in (*OWN, CHECKPOINTS, BOARD))


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Locks the folder of a run (see `exclusive`), and removes files that killed or failed processes left in it.

    Raises:
      QkjaxError: another process is using the folder.
    """
    with exclusive(folder):
        try:
            discard(_leftovers(folder))
            yield
        finally:
            discard(_leftovers(folder))


def tidy(folder: Path) -> None:
    """Removes what a killed process left in the folder of a finished run, unless another process is using it."""
    if jax.process_index() == 0 and (_leftovers(folder) or (folder / LOCK).exists()):
        with suppress(QkjaxError), exclusive_here(folder):
            discard(_leftovers(folder))


def _leftovers(folder: Path) -> list[Path]:
    """The temporary files and unfinished checkpoints in a folder, on the first host, which writes them."""
    if jax.process_index() > 0:
        return []
    return temporaries(folder / name for name in OWN) + unfinished(folder / CHECKPOINTS)
