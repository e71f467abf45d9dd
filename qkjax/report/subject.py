"""What a report is of: a model, and the folder where its results lie."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.results import by_name
from qkjax.scan import for_photographs
from qkjax.weights.load import Checkpoint, address, load, split_submodel

RESULTS = ("modes.nc", "modes/top_images.nc", "top_images.nc")
"""By which a folder of results is known; each says what model it is of."""


class Subject(NamedTuple):
    """A model for photographs.

    Attributes:
      where: its `address`.
      folder: where its results lie, or will.
    """

    checkpoint: Checkpoint
    where: str
    folder: Path

    @property
    def scanned(self) -> Path:
        """The folder of top_images.nc: `modes` in that of the results; or itself, if it is what `qkjax modes` wrote."""
        return self.folder if (self.folder / "top_images.nc").exists() else self.folder / "modes"


def subjects_of(targets: tuple[str, ...], settings: Mapping) -> list[Subject]:
    """The models that are meant, by folders of results or as `load` takes them.

    Raises:
      QkjaxError: a model cannot be read, two have one name, or a folder does not say where its model is.
    """
    models = [_of_results(Path(target)) for target in targets]
    loaded = [for_photographs(load(m or target, **settings)) for m, target in zip(models, targets, strict=True)]
    return [
        Subject(checkpoint, model or address(target), Path(target) if model else Path("results") / name)
        for (name, checkpoint), model, target in zip(by_name(loaded).items(), models, targets, strict=True)
    ]


def _of_results(folder: Path) -> str | None:
    """What `load` takes for the model of a folder of results; None if it is no such folder.

    Raises:
      QkjaxError: a result cannot be read, or is of a model that is no longer where it was.
    """
    path = next((folder / name for name in RESULTS if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            model, where = str(data.attrs["model"]), data.attrs.get("checkpoint")
    except Exception as error:  # h5netcdf raises whatever it stumbles over
        raise QkjaxError(f"{path} is no result that can be read ({error}); remove it") from error
    if where is None:
        raise QkjaxError(f"{path} does not say where its model, {model!r}, lies: give the model instead of its results")
    if os.path.isabs(where) and not os.path.exists(split_submodel(where)[0]):
        raise QkjaxError(f"{path} is of {where}, which is not there any more: give the model instead of its results")
    return where
