"""The subject of a report: a model, and the folder of its results."""

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
"""Files in a folder of results that refer to their model."""


class Subject(NamedTuple):
    """A model for photographs.

    Attributes:
      name: name on the page: the checkpoint's name, made unique if two checkpoints share it.
      checkpoint: the model.
      origin: see `qkjax.weights.load.origin`.
      folder: folder of its results.
    """

    name: str
    checkpoint: Checkpoint
    origin: Mapping[str, str]
    folder: Path

    @property
    def scan_folder(self) -> Path:
        """The folder of top_images.nc: the folder of results if it contains one, else its subfolder `top_images`."""
        return self.folder if (self.folder / "top_images.nc").exists() else earlier_folder(self.folder)


class ModelData(NamedTuple):
    """The data of one model's pages.

    Attributes:
      subject: the model and the folder of its results.
      modes: its modes.
      scan: options of the scan.
      images: folder or archive of the images; None for the default photographs.
      top, maps: results of `write_top_images` and `map_tiles`.
    """

    subject: Subject
    modes: Modes
    scan: ScanOptions
    images: Path | None
    top: xr.Dataset
    maps: xr.Dataset


def subjects_of(targets: tuple[str, ...], settings: Mapping) -> list[Subject]:
    """The models of the targets.

    Args:
      targets: folders of results, or models as for `load`.
      settings: settings of a single model, for `load`; they are added to those that a folder of results states.

    Raises:
      QkjaxError: a model cannot be read, two have the same name, a folder does not state the path of its model, or
        there are settings and several models.
    """
    if settings and len(targets) > 1:
        given = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise QkjaxError(
            f"{given} would apply to all {len(targets)} models: write one report per model, then one of their results"
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
    """Loads the model of a folder of results from its stored origin; without one, the target is the model."""
    if stored is None:
        return load(target, **settings)
    try:
        return load(stored["checkpoint"], **json.loads(stored["loaded_with"]))
    except QkjaxError as error:
        raise QkjaxError(f"the model of {target} cannot be loaded: {error}; give the model instead") from error


def _origin_of_results(folder: Path, settings: Mapping) -> dict[str, str] | None:
    """The `origin` that a folder of results states, with these settings added; None for any other target.

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
            f"{next(iter(attrs))} does not state the path of its model: give the model instead of its results"
        )
    return None


def attributes(path: Path) -> dict:
    """Reads the attributes of a result (netCDF).

    Raises:
      QkjaxError: the file cannot be read.
    """
    return dict(read_result(path).attrs)
