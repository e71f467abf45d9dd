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
    """Versions of the libraries that computed a result, as attributes of the result."""
    return {f"version_{name}": version(name) for name in ("qkjax", "jax", "numpy")}


def write_dataset(dataset: xr.Dataset, path: Path) -> None:
    """Writes a dataset to a netCDF (HDF5) file atomically.

    The file is first built in memory, since HDF5 crashes the process if it cannot write to disk.

    Raises:
      QkjaxError: the file cannot be written.
    """
    data = dataset.to_netcdf(engine="h5netcdf")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


HOW = ("model", "batch", "devices", "jax", "qkjax")
"""Settings that affect only the name or the last bits of a result. Results that differ only in these settings are
equivalent."""


def read_earlier(path: Path, settings: Mapping[str, str], at_least: Sequence[str] = ()) -> xr.Dataset | None:
    """Reads the result of an earlier run with the same settings; returns None if the file does not exist.

    Args:
      path: the netCDF file.
      settings: the expected settings. The settings of the earlier run are in the attribute `settings`, as JSON.
      at_least: names of numeric settings that may have larger values in the earlier result.

    Raises:
      QkjaxError: the result has different settings or cannot be read. The file is never overwritten, since its
        computation may have taken hours.
    """
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            data, earlier = opened.load(), json.loads(opened.attrs["settings"])
    except Exception as error:  # h5netcdf raises many kinds of exceptions
        raise QkjaxError(f"cannot read the result {path} ({error}); remove the file") from error
    enough = {*HOW, *(name for name in at_least if int(earlier.get(name, 0)) >= int(settings[name]))}
    if other := [name for name in settings if earlier.get(name) != settings[name] and name not in enough]:
        raise QkjaxError(
            f"{path} has different settings ({', '.join(other)}): remove the file, or pass another folder as folder=..."
        )
    return data


def texts(values: Sequence[str]) -> np.ndarray:
    """An array of texts that netCDF can store. Bytes in file names that are not valid text become question marks."""
    return np.array([v.encode("utf-8", "replace").decode() for v in values], dtype=object)
