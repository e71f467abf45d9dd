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
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.load import load, origin

RESULTS = ("modes.nc", "top_images/top_images.nc", "modes/top_images.nc", "top_images.nc")
"""Files that a folder of results has; each names its model."""


class Subject(NamedTuple):
    """A model for photographs.

    Attributes:
      name: what the page calls it: the checkpoint's name, longer where two have one.
      origin: see `qkjax.weights.load.origin`.
      folder: where its results lie, or will.
    """

    name: str
    checkpoint: Checkpoint
    origin: Mapping[str, str]
    folder: Path

    @property
    def scanned(self) -> Path:
        """The folder of top_images.nc: `top_images` in that of the results; or itself, if it holds one."""
        return self.folder if (self.folder / "top_images.nc").exists() else earlier_folder(self.folder)


class ModelData(NamedTuple):
    """Everything that one model's pages are made from.

    Attributes:
      scan: how the scan was made.
      images: the images' folder or archive; None for the default photographs.
      top, maps: of `write_top_images` and `map_tiles`.
    """

    subject: Subject
    modes: Modes
    scan: ScanOptions
    images: Path | None
    top: xr.Dataset
    maps: xr.Dataset


def subjects_of(targets: tuple[str, ...], settings: Mapping) -> list[Subject]:
    """The models of the targets, which are folders of results, or what `load` takes.

    Args:
      settings: for `load`, of a single model; a folder of results has its model's own.

    Raises:
      QkjaxError: a model cannot be read, two have one name, a folder does not say where its model is, or there are
        settings for several models.
    """
    if settings and len(targets) > 1:
        given = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise QkjaxError(
            f"{given} would apply to all {len(targets)} models: write a report of each first, then one of their results"
        )
    earlier = [_of_results(Path(target), settings) for target in targets]
    pairs = list(zip(targets, earlier, strict=True))
    loaded = [for_photographs(_loaded(target, found, settings)) for target, found in pairs]
    return [
        Subject(name, checkpoint, found or origin(target, settings), Path(target) if found else Path("results") / name)
        for (target, found), checkpoint, name in zip(pairs, loaded, by_name(loaded), strict=True)
    ]


def _loaded(target: str, found: Mapping[str, str] | None, settings: Mapping) -> Checkpoint:
    """The checkpoint of a folder of results that has this origin, or, without one, of a model."""
    if found is None:
        return load(target, **settings)
    try:
        return load(found["checkpoint"], **json.loads(found["loaded_with"]))
    except QkjaxError as error:
        raise QkjaxError(f"the model of {target} cannot be loaded: {error}; give the model instead") from error


def _of_results(folder: Path, settings: Mapping) -> dict[str, str] | None:
    """The `origin` of the model of a folder of results, with these settings added; None if it is not such a folder.

    Raises:
      QkjaxError: a result cannot be read, or none says where its model is.
    """
    attrs = {path: attributes(path) for path in (folder / name for name in RESULTS) if path.is_file()}
    for said in attrs.values():
        if "checkpoint" in said:
            loaded_with = {**json.loads(said.get("loaded_with", "{}")), **settings}
            return {"checkpoint": str(said["checkpoint"]), "loaded_with": json.dumps(loaded_with)}
    if attrs:
        raise QkjaxError(
            f"{next(iter(attrs))} does not say where its model lies: give the model instead of its results"
        )
    return None


def attributes(path: Path) -> dict:
    """Attributes of a result (netCDF).

    Raises:
      QkjaxError: it cannot be read.
    """
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            return dict(data.attrs)
    except Exception as error:  # h5netcdf raises whatever it stumbles over
        raise QkjaxError(f"cannot read the result {path} ({error}); remove it") from error
