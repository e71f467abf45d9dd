"""A training run in a folder: goes on from where it was stopped, and ends as a checkpoint like any other."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from qkjax import hosts
from qkjax.errors import QkjaxError
from qkjax.files import atomic_path, make_folder
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.interrupt import held
from qkjax.results import head_mean
from qkjax.train.config import TrainConfig, from_dict, vit_config
from qkjax.train.data import Task, ahead, held_out_batches, training_batches
from qkjax.train.devices import spread
from qkjax.train.model import count, initial, matched, needs_lapack
from qkjax.train.start import starting_tree
from qkjax.train.step import Program, State
from qkjax.train.step import program as make_program
from qkjax.train.tasks import load_task
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.export import save

CONFIG, METRICS, CHECKPOINTS, MODEL, BOARD = "config.json", "metrics.jsonl", "checkpoints", "model.npz", "tensorboard"
NPROC = "PJRT_NPROC"  # threads that XLA has on a CPU


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
    lines = read_metrics(folder / METRICS)
    if _claimed(folder, config) and (folder / MODEL).exists() and lines and lines[-1]["step"] == config.steps:
        return lines[-1]
    task = load_task(config)
    vit, tree = starting_tree(config, vit_config(config, task.pixels, task.classes))
    vit = matched(vit, config.constraints(), config.bias) if config.match else vit
    _check_devices(config)
    _claim(folder, config)
    program = make_program(config, vit)
    with _manager(folder / CHECKPOINTS) as manager:
        state = _restore(manager, program.shapes) or program.begin(
            initial(jax.random.key(config.seed), vit, config.constraints(), tree, config.bias)
        )
        lines = [line for line in lines if line["step"] <= int(state.step)]
        learned = count(state.params, config.constraints())
        print(f"{folder}: {learned:,} parameters, from step {int(state.step)} to {config.steps}", file=sys.stderr)
        state = _go_on(config, task, program, state, manager, lines, folder)
    exported = program.export(state.tried)
    if jax.process_index() == 0:
        save(folder / MODEL, vit, jax.tree.map(np.asarray, exported))
    return lines[-1]


def _go_on(config: TrainConfig, task: Task, program: Program, state: State, manager, lines: list, folder: Path):
    """Steps to the end, with an evaluation, its line and a checkpoint every so many."""
    at = int(state.step)
    host, hosts = jax.process_index(), jax.process_count()
    batches = training_batches(task, config, host, hosts)[at : config.steps]
    bar = tqdm(total=config.steps, initial=at, unit="step", disable=host > 0)
    with held() as interrupted, bar, _board(folder, config, at) as board:
        for number, batch in enumerate(ahead(batches), start=at + 1):
            state, value = program.step(state, *spread(batch))
            bar.update()
            if number % config.every == 0 or number == config.steps:
                lines.append(_measure(state, value, program, held_out_batches(task, config.batch, host, hosts)))
                bar.set_postfix(accuracy=f"{lines[-1]['accuracy']:.4f}")
                _save(manager, state, lines[-1])
                board(lines[-1])
                if host == 0:
                    _write_metrics(folder / METRICS, lines)
            interrupted()
        manager.wait_until_finished()
    return state


def _measure(state: State, value, program: Program, held_out: Iterable) -> dict:
    """A line of the metrics: what was learned, and the cosine profile by the analysis of any checkpoint."""
    if not np.isfinite(float(value)):
        raise QkjaxError(f"the loss is {float(value)} at step {int(state.step)}: give a smaller learning rate")
    sums = [program.evaluate(state.tried, *spread(batch)) for batch in held_out]
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    kernels = query_key_kernels(program.export(state.tried))
    cosines = head_mean(measure(decompose(*kernels)).weighted_cosine)
    return {
        "step": int(state.step),
        "loss": float(value),
        "accuracy": total["right"] / total["count"],
        "validation_loss": total["loss"] / total["count"],
        "weighted_cosine": cosines.tolist(),
    }


def _check_devices(config: TrainConfig) -> None:
    """The same run on all hosts, and devices that can share its batch.

    Raises:
      QkjaxError: it is not, or they cannot.
    """
    if jax.process_count() > 1:
        hosts.agree({name: str(value) for name, value in config.to_dict().items()})
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


def _claimed(folder: Path, config: TrainConfig) -> bool:
    """Whether the folder holds this run.

    Raises:
      QkjaxError: it holds another.
    """
    path = folder / CONFIG
    if not path.exists():
        return False
    try:
        was = from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise QkjaxError(f"{path} is no configuration of a run ({error}); remove it, or give another folder") from error
    other = [name for name, value in config.to_dict().items() if was.to_dict()[name] != value]
    if other:
        raise QkjaxError(f"{folder} holds a run with another {', '.join(other)}: give another folder, or remove it")
    return True


def _claim(folder: Path, config: TrainConfig) -> None:
    """Writes the run's configuration where it is not yet."""
    make_folder(folder)
    if jax.process_index() == 0 and not (folder / CONFIG).exists():
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n")


@contextmanager
def _board(folder: Path, config: TrainConfig, at: int) -> Iterator[Callable[[dict], None]]:
    """Gives a function that writes a line of the metrics for TensorBoard too, where the run asks for it.

    Raises:
      QkjaxError: tensorboardX is not installed.
    """
    if not config.tensorboard or jax.process_index() > 0:
        yield lambda line: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise QkjaxError("--tensorboard needs tensorboardX, which is not here: pip install tensorboardX") from error

    def write(line: dict) -> None:
        layers = {f"weighted_cosine/layer_{layer}": value for layer, value in enumerate(line["weighted_cosine"])}
        for name, value in (line | layers).items():
            if name not in ("step", "weighted_cosine"):
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    with SummaryWriter(str(folder / BOARD), purge_step=at + 1) as writer:
        yield write


def _manager(folder: Path):
    """Orbax's: writes to a temporary name first, keeps the last and the best."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    logging.getLogger("absl").setLevel(logging.ERROR)  # it reports every file that it writes
    keep = policies.AnyPreservationPolicy(
        [policies.LatestN(1), policies.BestN(get_metric_fn=lambda metrics: metrics["accuracy"], n=1)]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def _save(manager, state: State, metrics: dict) -> None:
    import orbax.checkpoint as ocp

    manager.save(
        int(state.step), args=ocp.args.StandardSave(state._asdict()), metrics={"accuracy": metrics["accuracy"]}
    )


def _restore(manager, shapes: State) -> State | None:
    """The state of the last checkpoint, laid on the devices as the shapes say; None where there is none."""
    import orbax.checkpoint as ocp

    if manager.latest_step() is None:
        return None
    return State(**manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(shapes._asdict())))


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run, one for each evaluation; none where it has none yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_metrics(path: Path, lines: list[dict]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
