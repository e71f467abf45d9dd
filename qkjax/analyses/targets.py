"""Models by name, and where their results go."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.load import load, origin


def load_models(names: Sequence[str], settings: Mapping) -> dict[str, tuple[Checkpoint, dict[str, str]]]:
    """Each model and its origin (see `qkjax.weights.load.origin`), by the name under which its results are kept.

    Args:
      settings: for `load`, of all models.

    Raises:
      QkjaxError: a model cannot be read, or two have one name.
    """
    checkpoints = by_name([load(name, **settings) for name in names])
    origins = [origin(name, settings) for name in names]
    return {name: (c, o) for (name, c), o in zip(checkpoints.items(), origins, strict=True)}


def by_name(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Checkpoints by the names under which their results are kept. Several of one name, such as "seed0" of two sweeps,
    also have the name of their folder: "tied-seed0".

    Raises:
      QkjaxError: two have one name all the same.
    """
    labels = [checkpoint.name for checkpoint in checkpoints]
    named = [_with_folder(c) if labels.count(c.name) > 1 else c for c in checkpoints]
    labels = [checkpoint.name for checkpoint in named]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise QkjaxError(f"two models are called {min(twice)!r}; rename a file, or analyse them separately")
    return dict(zip(labels, named, strict=True))


def folders(names: Iterable[str], out: Path | None, kind: str) -> dict[str, Path]:
    """Where each model's results of a kind go: results/MODEL/kind, or `out`, or, for several models, out/MODEL."""
    names = list(names)
    if out is None:
        return {name: Path("results") / name / kind for name in names}
    return {name: out / name if len(names) > 1 else out for name in names}


def _with_folder(checkpoint: Checkpoint) -> Checkpoint:
    """The file may be in a folder of the checkpoint's name, as that of a run is."""
    above = Path(checkpoint.source).absolute().parent
    above = above.parent if above.name == checkpoint.name else above
    return replace(checkpoint, name=f"{above.name}-{checkpoint.name}") if above.name else checkpoint
