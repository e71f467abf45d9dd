"""Loads models by name, and determines the folders for their results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.folders import check_folder
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.load import load, origin


def load_models(names: Sequence[str], settings: Mapping) -> dict[str, tuple[Checkpoint, dict[str, str]]]:
    """Loads models; returns a dict from each model's name in results to the model and its `qkjax.weights.load.origin`.

    Args:
      names: names or paths of models.
      settings: settings for `load`, which apply to all models.

    Raises:
      QkjaxError: a model cannot be read, or two models have the same name.
    """
    checkpoints = by_name([load(name, **settings) for name in names])
    origins = [origin(name, settings) for name in names]
    return {name: (c, o) for (name, c), o in zip(checkpoints.items(), origins, strict=True)}


def by_name(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Gives each checkpoint a unique name, under which its results are stored.

    If several checkpoints have the same name, such as "seed0" in two sweeps, the name of each checkpoint's folder is
    put in front, as in "tied-seed0".

    Raises:
      QkjaxError: two checkpoints still have the same name.
    """
    labels = [checkpoint.name for checkpoint in checkpoints]
    named = [_with_folder(c) if labels.count(c.name) > 1 else c for c in checkpoints]
    labels = [checkpoint.name for checkpoint in named]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise QkjaxError(
            f"two models have the same name {min(twice)!r}; rename one file, or analyse the models separately"
        )
    return dict(zip(labels, named, strict=True))


def folders(names: Iterable[str], out: Path | None, kind: str) -> dict[str, Path]:
    """The folder for the results of each model.

    If `out` is None, the folder is results/MODEL/kind. If `out` is given, the folder is `out` for a single model, and
    out/MODEL for several models. If `kind` is empty, the folder is results/MODEL by default.

    Raises:
      QkjaxError: one of these paths is not a folder and cannot become one.
    """
    names = list(names)
    if out is None:
        paths = {name: Path("results") / name / kind for name in names}
    else:
        paths = {name: out / name if len(names) > 1 else out for name in names}
    for path in paths.values():
        check_folder(path)
    return paths


def _with_folder(checkpoint: Checkpoint) -> Checkpoint:
    """The name of a checkpoint, preceded by the name of its folder.

    If the folder has the same name as the checkpoint, as in training runs, the parent folder's name is used instead.
    """
    above = Path(checkpoint.source).absolute().parent
    above = above.parent if above.name == checkpoint.name else above
    return replace(checkpoint, name=f"{above.name}-{checkpoint.name}") if above.name else checkpoint
