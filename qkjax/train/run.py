"""Trains a ViT in a folder. An interrupted run resumes, and a finished run leaves a checkpoint that `load` reads."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from qkjax.errors import QkjaxError
from qkjax.runtime import hosts
from qkjax.runtime.folders import check_folder
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.train.board import tensorboard
from qkjax.train.checkpoints import Checkpoints, open_checkpoints, restore_state, save_state, wait_until_saved
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.data import Task, held_out_batches, training_batches
from qkjax.train.devices import distribute
from qkjax.train.environments import record_environment
from qkjax.train.folder import (
    BOARD,
    CHECKPOINTS,
    ENVIRONMENT,
    FACTS,
    METRICS,
    MODEL,
    discard_run,
    earlier_metrics,
    identify,
    is_finished,
    only_process,
    require_same_data,
    require_same_start,
    resumed_lines,
    tidy,
)
from qkjax.train.model import count, initial, matched, needs_lapack
from qkjax.train.positions import interaction_measures
from qkjax.train.records import read_facts, write_facts, write_metrics
from qkjax.train.start import start_digest, starting_tree
from qkjax.train.step import Program, State
from qkjax.train.step import program as make_program
from qkjax.train.tasks import PRESET, load_task
from qkjax.vit.config import ViTConfig
from qkjax.weights.checkpoint import write_checkpoint
from qkjax.weights.preprocessing import with_resolution

NPROC = "PJRT_NPROC"  # environment variable with the number of XLA's threads on a CPU


class DivergedError(QkjaxError):
    """Error for a training run whose loss is not finite."""


def train(config: TrainConfig, folder: str | Path, *, label: str = "", fresh: bool = False) -> dict:
    """Trains a ViT in a folder, or resumes an interrupted run there.

    The function prints only a progress bar, to standard error. The folder contains config.json, metrics.jsonl (one line
    per evaluation), and checkpoints of the last two evaluations and of the best evaluation. At the end, the folder also
    contains model.npz, which `qkjax.load(folder)` and big_vision can read. The same call resumes an interrupted run,
    with bit-identical results. A finished run is not trained again. Processes joined by `hosts.join` train one model
    together, in a folder that all processes can access.

    Args:
      config: configuration of the run.
      folder: folder of the run.
      label: text before the progress bar.
      fresh: discard an earlier run in the folder, whatever its configuration.

    Returns:
      The last evaluation and facts about the task, as a dict. The evaluation has "step", the "loss" (nats) of the last
      training batch, and "accuracy" (0 to 1) and "validation_loss" (nats) on the held-out images. The evaluation also
      has "weighted_cosine", a list with the mean over heads for each layer (None if undefined); with rotary positions,
      also "same_place_cosine" and "place_share" (see `train.positions.interaction_measures`). The facts are "classes"
      (number of classes), "held_out" (number of held-out images), "largest_class" (accuracy of always answering the
      most frequent class, or None if unknown) and "parameters" (number of trainable parameters).

    Raises:
      QkjaxError: the configuration is invalid, the folder contains a different run, or a file cannot be written.
      DivergedError: the loss is not finite.
      KeyboardInterrupt: the user interrupted the run. The function raises this exception between two steps. The state
        of the last evaluation is saved.

    Example:
      last = train(TrainConfig(constraint="tied", steps=300), "runs/tied")
      checkpoint = qkjax.load("runs/tied")
    """
    config, folder = config.checked(), Path(folder)
    check_folder(folder)
    if fresh:
        discard_run(folder)
        if jax.process_count() > 1:
            hosts.agree({"folder": "discarded"})  # the other hosts read it after this
    lines = earlier_metrics(folder, config)
    finished = is_finished(folder, config, lines)
    task = None if finished else load_task(config)
    if finished and Path(config.data).is_dir():
        require_same_data(folder, config, load_task(config).fingerprint)
    start = start_digest(config)
    if lines:
        require_same_start(folder, config, start)
    _check_devices(config, finished, task)
    if task is None:
        tidy(folder)
    else:
        vit, tree = starting_tree(config, _matched_vit(config, task))
        lines = _train_in(folder, config, task, vit, tree, start, label)
    return lines[-1] | read_facts(folder / FACTS)


def _matched_vit(config: TrainConfig, task: Task) -> ViTConfig:
    vit = vit_config(config, task.pixels, task.classes)
    return matched(vit, config.constraints(), config.bias) if config.match else vit


def _train_in(
    folder: Path, config: TrainConfig, task: Task, vit: ViTConfig, tree: dict | None, start: str, label: str
) -> list[dict]:
    """Trains to the last step and exports the model; returns the metrics, with one dict per evaluation."""
    program = make_program(config, vit)
    params = initial(jax.random.key(config.seed), vit, config.constraints(), tree, config.bias, config.constrained)
    with only_process(folder):
        earlier_metrics(folder, config)  # read again, because another process may have trained here until now
        with open_checkpoints(folder / CHECKPOINTS) as checkpoints:
            identify(folder, config, task.fingerprint, start)
            if jax.process_count() > 1:
                hosts.agree({"folder": str(checkpoints.manager.latest_step())})
            restored = restore_state(checkpoints, program.shapes)
            state, own = restored or (program.begin(params), None)
            lines = resumed_lines(folder, config, own) if own else []
            facts = {"classes": task.classes, "held_out": len(task.held_out), "largest_class": task.largest_class}
            if jax.process_index() == 0:
                write_facts(folder / FACTS, facts | {"parameters": count(state.params, config.constraints())})
                write_metrics(folder / METRICS, lines)
                record_environment(folder / ENVIRONMENT, int(state.step))
            state = _run_steps(config, task, program, vit, state, checkpoints, lines, folder, label)
        exported = program.export(state.evaluated)
        if jax.process_index() == 0:
            preprocess = with_resolution(PRESET, task.pixels[0])
            write_checkpoint(folder / MODEL, vit, jax.tree.map(np.asarray, exported), preprocess)
    return lines


def _with_waits(batches: Iterable[tuple]) -> Iterator[tuple[float, tuple]]:
    """Yields, for each batch, the number of seconds spent waiting for the batch, and the batch."""
    remaining = iter(batches)
    while True:
        start = time.monotonic()
        try:
            batch = next(remaining)
        except StopIteration:
            return
        yield time.monotonic() - start, batch


def _run_steps(
    config: TrainConfig,
    task: Task,
    program: Program,
    vit: ViTConfig,
    state: State,
    checkpoints: Checkpoints,
    lines: list,
    folder: Path,
    label: str,
) -> State:
    """Runs the remaining steps; evaluates, appends to the metrics and saves a checkpoint every `config.every` steps.

    The progress bar shows an upper bound on the share of time that the device spends waiting for batches. A large share
    means that images are prepared too slowly.
    """
    start, host = int(state.step), (jax.process_index(), jax.process_count())
    batches = training_batches(task, config, start, *host)
    bar = tqdm(total=config.steps, initial=start, unit="step", desc=label or None, disable=host[0] > 0)
    began, idle, value, accuracy = time.monotonic(), 0.0, None, ""
    with deferred_interrupt() as interrupted, bar, tensorboard(folder / BOARD, config, start) as board:
        for number, (waited, batch) in enumerate(_with_waits(batches), start=start + 1):
            if value is None or value.is_ready():  # the previous step ended while this batch was being prepared
                idle += waited
            state, value = program.step(state, *distribute(batch))
            bar.set_postfix_str(f"{accuracy}device idle {idle / (time.monotonic() - began):.0%}", refresh=False)
            bar.update()
            if number % config.every == 0 or number == config.steps:
                held_out = held_out_batches(task, config.batch // config.accumulate, *host)
                lines.append(_evaluation(state, value, program, vit, held_out))
                accuracy = f"accuracy={lines[-1]['accuracy']:.4f}, "
                # The line is written before the checkpoint, because a run that resumes can drop lines after the last
                # checkpoint, but cannot add a missing line.
                if host[0] == 0:
                    write_metrics(folder / METRICS, lines)
                board(lines[-1])
                save_state(checkpoints, state, lines[-1])
            interrupted()
        wait_until_saved(checkpoints)
    return state


def _evaluation(state: State, value, program: Program, vit: ViTConfig, held_out: Iterable) -> dict:
    """Computes the metrics of one evaluation. The cosines come from the functions that analyse any checkpoint."""
    sums = [program.evaluate(state.evaluated, *distribute(batch)) for batch in held_out]
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    if not np.isfinite(float(value) + total["loss"]):
        raise DivergedError(f"the loss is not finite at step {int(state.step)}: choose a smaller learning_rate")
    return {
        "step": int(state.step),
        "loss": float(value),
        "accuracy": total["correct"] / total["count"],
        "validation_loss": total["loss"] / total["count"],
        **interaction_measures(program.export(state.evaluated), vit),
    }


def _check_devices(config: TrainConfig, finished: bool, task: Task | None) -> None:
    """Checks that all hosts have the same run and data, and that a batch can be split over the devices.

    Raises:
      QkjaxError: the hosts differ, the batch cannot be split, or virtual devices of a CPU could deadlock.
    """
    if jax.process_count() > 1:
        values = config.to_dict() | {"finished": finished, "data set": task.fingerprint if task else ""}
        hosts.agree({name: str(value) for name, value in values.items()})
    rows, devices = config.batch // config.accumulate, jax.device_count()
    if rows % devices:
        raise QkjaxError(
            f"batch={config.batch}, accumulate={config.accumulate}: {rows} images cannot be split equally over "
            f"{devices} devices: expected a multiple of {devices}"
        )
    virtual = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    if virtual and NPROC not in os.environ and needs_lapack(config.constraints()):
        raise QkjaxError(
            f"constraint={config.constraint!r} calls LAPACK, which can deadlock with several virtual devices on a CPU: "
            f"set the environment variable {NPROC} to twice the number of devices"
        )
