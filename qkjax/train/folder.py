"""Reads and writes the files in the folder of a training run: configuration, metrics, checkpoints and lock."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.train.config import TrainConfig, from_dict
from qkjax.train.step import State

CONFIG, METRICS, CHECKPOINTS, MODEL, BOARD = "config.json", "metrics.jsonl", "checkpoints", "model.npz", "tensorboard"
DATA, FACTS, LOCK = "data.txt", "task.json", ".lock"


def holds_run(folder: Path, config: TrainConfig) -> bool:
    """Whether the folder has a checkpoint of the run with this configuration.

    Raises:
      QkjaxError: the folder has a checkpoint of a run with a different configuration.
    """
    path = folder / CONFIG
    if not path.exists() or not _has_checkpoint(folder):
        return False
    try:
        earlier = from_dict(json.loads(path.read_text())).to_dict()
    except (OSError, ValueError, AttributeError) as error:
        raise QkjaxError(
            f"{path} is not a valid configuration of a run ({error}); remove the file, or choose another folder"
        ) from error
    other = [f"{name}={earlier[name]!r}" for name, value in config.to_dict().items() if earlier[name] != value]
    if other:
        raise QkjaxError(
            f"{folder} contains a run with {', '.join(other)}: choose another folder, or remove this folder"
        )
    return True


def identify(folder: Path, config: TrainConfig, fingerprint: str) -> None:
    """Writes the run's configuration and the fingerprint of its data, unless the run already has a checkpoint.

    Raises:
      QkjaxError: the run has a checkpoint that was trained on different data.
    """
    path, resumes = folder / DATA, _has_checkpoint(folder)
    if resumes and path.exists() and path.read_text() != fingerprint:
        raise QkjaxError(
            f"data={config.data!r} has changed since the run in {folder} began: restore the data, or choose another "
            "folder"
        )
    if jax.process_index() == 0 and not resumes:
        for target, text in ((folder / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n"), (path, fingerprint)):
            with atomic_path(target) as temporary:
                temporary.write_text(text)


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / CHECKPOINTS).glob("[0-9]*"))


def write_facts(folder: Path, facts: dict) -> None:
    """Writes facts about a run that are not in its configuration, such as the number of classes, atomically."""
    if jax.process_index() == 0:
        with atomic_path(folder / FACTS) as temporary:
            temporary.write_text(json.dumps(facts) + "\n")


def read_facts(folder: Path) -> dict:
    """Reads the facts that `write_facts` wrote; the result is empty for a run of version 0.1.0.

    Raises:
      QkjaxError: the file is not valid JSON.
    """
    path = folder / FACTS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise QkjaxError(f"{path} is not a valid JSON object ({error}): remove the file") from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Locks the folder against other processes. With several hosts, the first host holds the lock for all hosts.

    Raises:
      QkjaxError: another process is training in the folder, or filelock is not installed.
    """
    if jax.process_index() > 0:
        yield
        return
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise QkjaxError("training needs filelock, which is not installed: pip install 'qkjax[train]'") from error
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise QkjaxError(
            f"another process is training in {folder}: wait until that process ends, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_metrics(path: Path) -> list[dict]:
    """Reads the metrics of a run, with one dict per evaluation; the result is empty if the file does not exist.

    Raises:
      QkjaxError: the file is not a valid file of metrics.
    """
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if isinstance(line["step"], int)]
    except (ValueError, KeyError, TypeError) as error:
        raise QkjaxError(
            f"{path} is not a valid file of metrics ({error}): restore the file, or remove the folder of the run"
        ) from error


def write_metrics(path: Path, lines: list[dict]) -> None:
    """Writes the metrics of a run atomically, with one line per evaluation."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def checkpoints(folder: Path):
    """Orbax's checkpoint manager for a run, which keeps only the last and the best checkpoint."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    logging.getLogger("absl").setLevel(logging.ERROR)  # absl logs every file that orbax writes

    def accuracy(metrics) -> float:
        return metrics["accuracy"]

    policy = policies.AnyPreservationPolicy([policies.LatestN(1), policies.BestN(get_metric_fn=accuracy, n=1)])
    # Without best_fn, metrics are not written, so the metrics of earlier checkpoints are lost when a run resumes.
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=accuracy, cleanup_tmp_directories=True)
    manager = ocp.CheckpointManager(folder.resolve(), options=options)
    for step in set(manager.all_steps()) - {manager.latest_step(), manager.best_step()}:
        manager.delete(step)  # this checkpoint was left by a run that was killed before it could delete the checkpoint
    return manager


def save_state(manager, state: State, metrics: dict) -> None:
    """Starts to write a checkpoint in the background."""
    import orbax.checkpoint as ocp

    manager.save(
        int(state.step), args=ocp.args.StandardSave(state._asdict()), metrics={"accuracy": metrics["accuracy"]}
    )


def restore_state(manager, shapes: State) -> State | None:
    """Restores the state of the last checkpoint, with the shardings of `shapes`; None if there is no checkpoint."""
    import orbax.checkpoint as ocp

    if manager.latest_step() is None:
        return None
    return State(**manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(shapes._asdict())))


@contextmanager
def tensorboard(folder: Path, config: TrainConfig, step: int) -> Iterator[Callable[[dict], None]]:
    """Yields a function that writes one evaluation for TensorBoard.

    The function does nothing if `config.tensorboard` is False.

    Args:
      folder: folder of the run.
      config: configuration of the run.
      step: step after which the run resumes; earlier entries for later steps are dropped.

    Raises:
      QkjaxError: tensorboardX is not installed.
    """
    if not config.tensorboard or jax.process_index() > 0:
        yield lambda line: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise QkjaxError(
            "tensorboard=True needs tensorboardX, which is not installed: pip install tensorboardX"
        ) from error

    def write(line: dict) -> None:
        layers = {f"weighted_cosine/layer_{layer}": value for layer, value in enumerate(line["weighted_cosine"])}
        for name, value in (line | layers).items():
            if name not in ("step", "weighted_cosine") and value is not None:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    with SummaryWriter(str(folder / BOARD), purge_step=step + 1) as writer:
        yield write
