"""The subjects of a report: models, each with the folder of its results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from qkjax.analyses.targets import by_name
from qkjax.analyses.top_images.pages import ScanOptions, earlier_folder
from qkjax.errors import QkjaxError
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import for_photographs
from qkjax.results.store import read_result
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.load import load, origin

RESULTS = ("modes.nc", "top_images/top_images.nc", "modes/top_images.nc", "top_images.nc")
"""Result files whose attributes name the model from which they were computed."""


class Subject(NamedTuple):
    """A model in a report, and the folder of its results.

    Attributes:
      name: name on the page: the name of the checkpoint, made unique if two checkpoints have the same name.
      checkpoint: the model, which accepts colour photographs.
      origin: attributes that state where the model was loaded from; see `qkjax.weights.load.origin`.
      folder: folder with the results of the model.
    """

    name: str
    checkpoint: Checkpoint
    origin: Mapping[str, str]
    folder: Path

    @property
    def scan_folder(self) -> Path:
        """The folder that contains top_images.nc: the folder of results itself, or one of its subfolders."""
        return self.folder if (self.folder / "top_images.nc").exists() else earlier_folder(self.folder)


class ModelData(NamedTuple):
    """The data that one model's pages show.

    Attributes:
      subject: the model and the folder of its results.
      modes: modes of the model.
      scan: options of the scan that found the top images of each mode.
      images: folder or archive of the images; None for the default photographs.
      top: dataset of the top images of each mode, from `write_top_images`.
      maps: dataset of query and key maps, from `map_tiles`.
    """

    subject: Subject
    modes: Modes
    scan: ScanOptions
    images: Path | None
    top: xr.Dataset
    maps: xr.Dataset


def subjects_of(targets: tuple[str, ...], settings: Mapping) -> list[Subject]:
    """Loads the models of a report.

    Args:
      targets: folders of results, or models as names or paths that `load` accepts.
      settings: settings for `load`, which are allowed only with a single model. For a folder of results, these settings
        are added to the settings that are stored in the results.

    Raises:
      QkjaxError: a model cannot be read, two models have the same name, a folder of results does not state the path of
        its model, or settings are given with several models.
    """
    if settings and len(targets) > 1:
        given = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise QkjaxError(
            f"{given} would apply to all {len(targets)} models: first write one report per model, and then a common "
            "report of the folders of results"
        )
    origins = [_origin_of_results(Path(target), settings) for target in targets]
    pairs = list(zip(targets, origins, strict=True))
    loaded = [for_photographs(_load(target, stored, settings)) for target, stored in pairs]
    return [
        Subject(
            name, checkpoint, stored or origin(target, settings), Path(target) if stored else Path("results") / name
        )
        for (target, stored), checkpoint, name in zip(pairs, loaded, by_name(loaded), strict=True)
    ]


def _load(target: str, stored: Mapping[str, str] | None, settings: Mapping) -> Checkpoint:
    """Loads a model from the origin stored in a folder of results. If `stored` is None, the target is the model."""
    if stored is None:
        return load(target, **settings)
    try:
        return load(stored["checkpoint"], **json.loads(stored["loaded_with"]))
    except QkjaxError as error:
        raise QkjaxError(
            f"cannot load the model of the results in {target}: {error}; pass the model instead of this folder"
        ) from error


def _origin_of_results(folder: Path, settings: Mapping) -> dict[str, str] | None:
    """The `origin` that is stored in a folder of results, plus `settings`; None if the folder contains no results.

    Raises:
      QkjaxError: a result cannot be read, or no result states the path of its model.
    """
    attrs = {path: attributes(path) for path in (folder / name for name in RESULTS) if path.is_file()}
    for path, stored in attrs.items():
        if "checkpoint" in stored:
            try:
                loaded_with = {**json.loads(stored.get("loaded_with", "{}")), **settings}
            except (ValueError, TypeError) as error:
                raise QkjaxError(f"{path} does not state how its model was loaded ({error}); remove it") from error
            return {"checkpoint": str(stored["checkpoint"]), "loaded_with": json.dumps(loaded_with)}
    if attrs:
        raise QkjaxError(
            f"{next(iter(attrs))} does not state the path of its model: pass the model instead of the results"
        )
    return None


def attributes(path: Path) -> dict:
    """Reads the attributes of a result, which is a netCDF file.

    Raises:
      QkjaxError: the file cannot be read.
    """
    return dict(read_result(path).attrs)
