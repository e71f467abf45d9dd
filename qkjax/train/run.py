"""A training run in a folder: goes on from where it was stopped, and ends as a checkpoint like any other."""

import json
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from qkjax.errors import QkjaxError
from qkjax.files import atomic_path, make_folder
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.interrupt import held
from qkjax.results import head_mean
from qkjax.train.config import TrainConfig, from_dict, vit_config
from qkjax.train.data import load_task, training_batches
from qkjax.train.model import count, initial, plain
from qkjax.train.step import State, evaluate, make_step, optimizer
from qkjax.vit.config import ViTConfig
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.export import save

CONFIG, METRICS, CHECKPOINTS, MODEL = "config.json", "metrics.jsonl", "checkpoints", "model.npz"


def train(config: TrainConfig, folder: Path) -> dict:
    """Trains, or goes on training, in a folder; returns the last line of its metrics.

    The folder holds config.json, metrics.jsonl (a line for each evaluation), the state at the last and at
    the best evaluation, and at the end model.npz, which `load` reads and big_vision too.

    Raises:
      QkjaxError: a configuration that cannot be, another run in the folder, or a file that cannot be written.
      KeyboardInterrupt: between two steps; the last evaluation's state is kept.
    """
    config = config.checked()
    task = load_task(config.data, config.seed)
    vit = vit_config(config, task.train.images.shape[1:], task.classes)
    names = config.constraints()
    batches = training_batches(task.train, config.batch, config.shift, config.seed)
    make_folder(folder)
    _claim(folder, config)
    step = make_step(config, vit)
    manager = _manager(folder / CHECKPOINTS)
    state = _restore(manager, _begin(config, vit))
    at = int(state.step)
    lines = [line for line in _read_metrics(folder / METRICS) if line["step"] <= at]
    print(f"{folder}: {count(state.params):,} parameters, from step {at} to {config.steps}", file=sys.stderr)
    with manager, held() as interrupted, tqdm(total=config.steps, initial=at, unit="step") as bar:
        for number in range(at, config.steps):
            state, value = step(state, *batches[number])
            bar.update()
            if (number + 1) % config.every == 0 or number + 1 == config.steps:
                lines.append(_measure(state, value, vit, names, task.validation))
                bar.set_postfix(accuracy=f"{lines[-1]['accuracy']:.4f}")
                _save(manager, state, lines[-1])
                _write_metrics(folder / METRICS, lines)
            interrupted()
        manager.wait_until_finished()
    tree = jax.tree.map(np.asarray, plain(state.params, vit, names))
    save(folder / MODEL, vit, tree)
    return lines[-1]


def _begin(config: TrainConfig, vit: ViTConfig) -> State:
    params = initial(jax.random.key(config.seed), vit, config.constraints(), bias=config.bias)
    return State(jnp.zeros((), jnp.int32), params, optimizer(config).init(params))


def _measure(state: State, value, vit: ViTConfig, names: tuple[str, ...], held_out) -> dict:
    """A line of the metrics: what was learned, and the cosine profile by the analysis of any checkpoint."""
    found = evaluate(state.params, vit, names, *held_out)
    kernels = query_key_kernels(plain(state.params, vit, names))
    cosines = head_mean(measure(decompose(*kernels)).weighted_cosine)
    numbers = {"loss": value, **found}
    if not np.isfinite(float(value)):
        raise QkjaxError(f"the loss is {float(value)} at step {int(state.step)}: give a smaller learning rate")
    return {"step": int(state.step), **{n: float(v) for n, v in numbers.items()}, "weighted_cosine": cosines.tolist()}


def _claim(folder: Path, config: TrainConfig) -> None:
    """Writes the run's configuration, or makes sure that it is the one that is there."""
    path = folder / CONFIG
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        return
    try:
        was = from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise QkjaxError(f"{path} is no configuration of a run ({error}); remove it, or give another --out") from error
    other = [name for name, value in config.to_dict().items() if was.to_dict()[name] != value]
    if other:
        raise QkjaxError(f"{folder} holds a run with another {', '.join(other)}: give another --out, or remove it")


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


def _restore(manager, state: State) -> State:
    import orbax.checkpoint as ocp

    if manager.latest_step() is None:
        return state
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict())
    return State(**manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(shapes)))


def _read_metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_metrics(path: Path, lines: list[dict]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
