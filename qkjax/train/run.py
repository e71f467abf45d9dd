"""A training run in a folder: goes on from where it was stopped, and ends as a checkpoint like any other."""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from qkjax.errors import QkjaxError
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.passes.engine import with_waits
from qkjax.results.rows import head_mean
from qkjax.runtime import hosts
from qkjax.runtime.files import make_folder
from qkjax.runtime.interrupt import held
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.data import Task, held_out_batches, training_batches
from qkjax.train.devices import spread
from qkjax.train.folder import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    alone,
    checkpoints,
    claim,
    claimed,
    read_metrics,
    restore_state,
    save_state,
    tensorboard,
    write_metrics,
)
from qkjax.train.model import count, initial, matched, needs_lapack
from qkjax.train.start import starting_tree
from qkjax.train.step import Program, State
from qkjax.train.step import program as make_program
from qkjax.train.tasks import PRESET, load_task
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.export import save
from qkjax.weights.preparation import at

NPROC = "PJRT_NPROC"  # threads that XLA has on a CPU


class DivergedError(QkjaxError):
    """The loss of a run is no finite number."""


def train(config: TrainConfig, folder: Path) -> dict:
    """Trains, or goes on training, in a folder; returns the last line of its metrics.

    The folder holds config.json, metrics.jsonl (a line for each evaluation), the state at the last and at
    the best evaluation, and at the end model.npz, which `load` reads and big_vision too. Where several
    processes were joined by `hosts.join`, they train one model, in a folder that all of them see.

    Raises:
      QkjaxError: a configuration that cannot be, another run in the folder, or a file that cannot be written.
      KeyboardInterrupt: between two steps; the last evaluation's state is kept.
    """
    config = config.checked()
    lines = read_metrics(folder / METRICS) if claimed(folder, config) else []
    finished = bool(lines) and (folder / MODEL).exists() and lines[-1]["step"] == config.steps
    task = None if finished else load_task(config)
    _check_devices(config, finished, task)
    if finished:
        return lines[-1]
    vit = vit_config(config, task.pixels, task.classes)
    vit = matched(vit, config.constraints(), config.bias) if config.match else vit
    vit, tree = starting_tree(config, vit)
    program = make_program(config, vit)
    params = initial(jax.random.key(config.seed), vit, config.constraints(), tree, config.bias)
    make_folder(folder)
    with alone(folder), checkpoints(folder / CHECKPOINTS) as manager:
        claim(folder, config, task.fingerprint)
        if jax.process_count() > 1:
            hosts.agree({"folder": str(manager.latest_step())})
        state = restore_state(manager, program.shapes) or program.begin(params)
        lines = [line for line in lines if line["step"] <= int(state.step)]
        learned = count(state.params, config.constraints())
        print(f"{folder}: {learned:,} parameters, from step {int(state.step)} to {config.steps}", file=sys.stderr)
        state = _go_on(config, task, program, state, manager, lines, folder)
        exported = program.export(state.tried)
        if jax.process_index() == 0:
            save(folder / MODEL, vit, jax.tree.map(np.asarray, exported), at(PRESET, task.pixels[0]))
    return lines[-1]


def _go_on(config: TrainConfig, task: Task, program: Program, state: State, manager, lines: list, folder: Path):
    """Steps to the end, with an evaluation, its line and a checkpoint every so many.

    The bar says for what share of the time the device had nothing to do until a batch came, at most: where it is large,
    images are made too slowly.
    """
    done, host = int(state.step), (jax.process_index(), jax.process_count())
    batches = training_batches(task, config, done, *host)
    bar = tqdm(total=config.steps, initial=done, unit="step", disable=host[0] > 0)
    began, idle, value, accuracy = time.monotonic(), 0.0, None, ""
    with held() as interrupted, bar, tensorboard(folder, config, done) as board:
        for number, (waited, batch) in enumerate(with_waits(batches), start=done + 1):
            if value is None or value.is_ready():  # the step before had ended while this one's batch was waited for
                idle += waited
            state, value = program.step(state, *spread(batch))
            bar.set_postfix_str(f"{accuracy}device idle {idle / (time.monotonic() - began):.0%}", refresh=False)
            bar.update()
            if number % config.every == 0 or number == config.steps:
                held_out = held_out_batches(task, config.batch // config.accumulate, *host)
                lines.append(_measure(state, value, program, held_out))
                accuracy = f"accuracy={lines[-1]['accuracy']:.4f}, "
                # Lines beyond the last checkpoint are dropped on resuming; a checkpoint without its line would lack it.
                if host[0] == 0:
                    write_metrics(folder / METRICS, lines)
                board(lines[-1])
                save_state(manager, state, lines[-1])
            interrupted()
        manager.wait_until_finished()
    return state


def _measure(state: State, value, program: Program, held_out: Iterable) -> dict:
    """A line of the metrics: what was learned, and the cosine profile by the analysis of any checkpoint."""
    sums = [program.evaluate(state.tried, *spread(batch)) for batch in held_out]
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    if not np.isfinite(float(value) + total["loss"]):
        raise DivergedError(f"the loss is no finite number at step {int(state.step)}: give a smaller learning rate")
    kernels = query_key_kernels(program.export(state.tried))
    cosines = head_mean(measure(decompose(*kernels)).weighted_cosine)
    return {
        "step": int(state.step),
        "loss": float(value),
        "accuracy": total["right"] / total["count"],
        "validation_loss": total["loss"] / total["count"],
        "weighted_cosine": [float(c) if np.isfinite(c) else None for c in cosines],  # JSON has no NaN
    }


def _check_devices(config: TrainConfig, finished: bool, task: Task | None) -> None:
    """The same run, folder and data on all hosts, and devices that can share its batch.

    Raises:
      QkjaxError: it is not, or they cannot.
    """
    if jax.process_count() > 1:
        values = config.to_dict() | {"finished": finished, "data set": task.fingerprint if task else ""}
        hosts.agree({name: str(value) for name, value in values.items()})
    if (config.batch // config.accumulate) % jax.device_count():
        raise QkjaxError(
            f"{jax.device_count()} devices do not divide the {config.batch // config.accumulate} images worked "
            "through at once: give another --batch or --accumulate"
        )
    virtual = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    if virtual and NPROC not in os.environ and needs_lapack(config.constraints()):
        raise QkjaxError(
            f"virtual devices of a CPU would wait for each other for ever in LAPACK: set {NPROC} to twice their number"
        )
