"""Reads and writes results as netCDF files."""

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
    """Atomically writes netCDF (HDF5).

    The file is built in memory first, since HDF5 crashes the process if it cannot write.

    Raises:
      QkjaxError: the file cannot be written.
    """
    data = dataset.to_netcdf(engine="h5netcdf")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


HOW = ("model", "batch", "devices", "jax", "qkjax")
"""Settings that only affect the name or the last bits of a result; results that differ only in these are equivalent."""


def read_earlier(path: Path, settings: Mapping[str, str], at_least: Sequence[str] = ()) -> xr.Dataset | None:
    """Reads the result of an earlier run with the same settings; None if the file does not exist.

    Args:
      path: the netCDF file.
      settings: the expected settings; the file has its own in the attribute `settings`, as JSON.
      at_least: names of numeric settings for which the earlier result may have larger values.

    Raises:
      QkjaxError: the result has other settings or cannot be read. It is never overwritten, since it may be the work of
        hours.
    """
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            data, earlier = opened.load(), json.loads(opened.attrs["settings"])
    except Exception as error:  # h5netcdf raises many kinds of exceptions
        raise QkjaxError(f"cannot read the result {path} ({error}); remove it") from error
    enough = {*HOW, *(name for name in at_least if int(earlier.get(name, 0)) >= int(settings[name]))}
    if other := [name for name in settings if earlier.get(name) != settings[name] and name not in enough]:
        raise QkjaxError(
            f"{path} has other settings ({', '.join(other)}): remove it, or write to another folder, folder=..."
        )
    return data


def texts(values: Sequence[str]) -> np.ndarray:
    """Texts in a form that netCDF can store; bytes in file names that are not valid text become question marks."""
    return np.array([v.encode("utf-8", "replace").decode() for v in values], dtype=object)
