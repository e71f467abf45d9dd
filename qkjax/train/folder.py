"""The folder of a run: what it is, how far it is, and the lock on it."""

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
DATA, LOCK = "data.txt", ".lock"


def claimed(folder: Path, config: TrainConfig) -> bool:
    """Whether the folder holds this run; one of other values that came to no checkpoint is as nothing.

    Raises:
      QkjaxError: it holds another.
    """
    path = folder / CONFIG
    if not path.exists() or not _begun(folder):
        return False
    try:
        was = from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise QkjaxError(f"{path} is no configuration of a run ({error}); remove it, or give another folder") from error
    other = [name for name, value in config.to_dict().items() if was.to_dict()[name] != value]
    if other:
        raise QkjaxError(f"{folder} holds a run with another {', '.join(other)}: give another folder, or remove it")
    return True


def claim(folder: Path, config: TrainConfig, fingerprint: str) -> None:
    """Writes the run's configuration and its data's fingerprint where they are not yet.

    Raises:
      QkjaxError: the run was begun with other data.
    """
    path, begun = folder / DATA, _begun(folder)
    if begun and path.exists() and path.read_text() != fingerprint:
        raise QkjaxError(
            f"{config.data} is not what it was when {folder} was begun: files came, went or changed; bring them back, "
            "or give another folder"
        )
    if jax.process_index() == 0 and not begun:
        for target, text in ((folder / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n"), (path, fingerprint)):
            with atomic_path(target) as temporary:
                temporary.write_text(text)


def _begun(folder: Path) -> bool:
    """Whether there is a checkpoint."""
    return any((folder / CHECKPOINTS).glob("[0-9]*"))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While no other process trains in the folder; of several hosts the first one asks for all.

    Raises:
      QkjaxError: one does.
    """
    if jax.process_index() > 0:
        yield
        return
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise QkjaxError("training needs filelock, which is not here: pip install 'qkjax[train]'") from error
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise QkjaxError(f"another process trains in {folder}: wait for it, or give another folder") from error
    try:
        yield
    finally:
        lock.release()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run, one for each evaluation; none where it has none yet.

    Raises:
      QkjaxError: it is no such file.
    """
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if isinstance(line["step"], int)]
    except (ValueError, KeyError, TypeError) as error:
        raise QkjaxError(
            f"{path} is no file of metrics ({error}): bring it back, or remove the run's folder"
        ) from error


def write_metrics(path: Path, lines: list[dict]) -> None:
    """Writes the lines of a run. Atomic."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def checkpoints(folder: Path):
    """Orbax's: writes to a temporary name first, keeps the last and the best."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    logging.getLogger("absl").setLevel(logging.ERROR)  # it reports every file that it writes

    def accuracy(metrics) -> float:
        return metrics["accuracy"]

    keep = policies.AnyPreservationPolicy([policies.LatestN(1), policies.BestN(get_metric_fn=accuracy, n=1)])
    # Without best_fn metrics are not written, and those of before are forgotten when a run goes on.
    options = ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=accuracy, cleanup_tmp_directories=True)
    manager = ocp.CheckpointManager(folder.resolve(), options=options)
    for step in set(manager.all_steps()) - {manager.latest_step(), manager.best_step()}:
        manager.delete(step)  # left by a run that was killed before it came to that
    return manager


def save_state(manager, state: State, metrics: dict) -> None:
    """Writes a checkpoint, in the background."""
    import orbax.checkpoint as ocp

    manager.save(
        int(state.step), args=ocp.args.StandardSave(state._asdict()), metrics={"accuracy": metrics["accuracy"]}
    )


def restore_state(manager, shapes: State) -> State | None:
    """The state of the last checkpoint, laid on the devices as the shapes say; None where there is none."""
    import orbax.checkpoint as ocp

    if manager.latest_step() is None:
        return None
    return State(**manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(shapes._asdict())))


@contextmanager
def tensorboard(folder: Path, config: TrainConfig, at: int) -> Iterator[Callable[[dict], None]]:
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
            if name not in ("step", "weighted_cosine") and value is not None:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    with SummaryWriter(str(folder / BOARD), purge_step=at + 1) as writer:
        yield write
