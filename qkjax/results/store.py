"""The results of one model as a labelled dataset and as a table, and their files."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path


def versions() -> dict[str, str]:
    """Versions of the libraries that computed a result, for its attributes."""
    return {f"version_{name}": version(name) for name in ("qkjax", "jax", "numpy")}


def write_dataset(dataset: xr.Dataset, path: Path) -> None:
    """Writes netCDF (HDF5). Atomic.

    The file is built in memory first: HDF5 crashes the process when its own writing fails.

    Raises:
      QkjaxError: the file cannot be written.
    """
    data = dataset.to_netcdf(engine="h5netcdf")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


HOW = ("model", "batch", "devices", "jax", "qkjax")
"""Settings that decide the name or the last bits of a result, but not what it is a result of."""


def read_earlier(path: Path, settings: Mapping[str, str], at_least: Sequence[str] = ()) -> xr.Dataset | None:
    """The result of an earlier run with the same settings (its attribute of that name, as JSON); None without one.

    Args:
      at_least: settings that are numbers, for which the earlier result may have larger values.

    Raises:
      QkjaxError: it has other settings, or cannot be read. It is never overwritten: it may be hours of work.
    """
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            data, was = opened.load(), json.loads(opened.attrs["settings"])
    except Exception as error:  # h5netcdf raises whatever it stumbles over
        raise QkjaxError(f"cannot read the result {path} ({error}); remove it") from error
    enough = {*HOW, *(name for name in at_least if int(was.get(name, 0)) >= int(settings[name]))}
    if other := [name for name in settings if was.get(name) != settings[name] and name not in enough]:
        raise QkjaxError(
            f"{path} has other settings ({', '.join(other)}): remove it, or write to another folder, folder=..."
        )
    return data


def texts(values: Sequence[str]) -> np.ndarray:
    """Texts as netCDF holds them; bytes in file names that are not text become question marks."""
    return np.array([v.encode("utf-8", "replace").decode() for v in values], dtype=object)
