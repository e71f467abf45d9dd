"""Reads and writes results as netCDF files."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.runtime.visible import visible


def versions() -> dict[str, str]:
    """The versions of the libraries that computed a result, in the form of attributes of the result."""
    return {f"version_{name}": version(name) for name in ("qkjax", "jax", "numpy")}


def write_dataset(dataset: xr.Dataset, path: Path) -> None:
    """Writes a dataset to a netCDF (HDF5) file atomically, with a checksum of the dataset in the attribute `digest`.

    The file is first built in memory, because HDF5 crashes the process if it cannot write to disk. In attributes, such
    as the path of the checkpoint, hidden characters and invalid bytes become escape sequences.

    Raises:
      QkjaxError: the file cannot be written.
    """
    attrs = {name: visible(value, "\n") if isinstance(value, str) else value for name, value in dataset.attrs.items()}
    dataset = dataset.drop_attrs(deep=False).assign_attrs(attrs)
    data = dataset.assign_attrs({DIGEST: digest(dataset)}).to_netcdf(engine="h5netcdf")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def require_own(path: Path) -> None:
    """Checks that a path, to which a result will be written, does not contain a netCDF file of another program.

    Raises:
      QkjaxError: the file is not a result of qkjax.
    """
    if os.path.lexists(path) and "version_qkjax" not in read_result(path).attrs:
        raise QkjaxError(f"{path} is not a result of qkjax, and would be replaced: move it, or pass another folder")


def read_result(path: Path) -> xr.Dataset:
    """Reads a result, and verifies its checksum. Results of version 0.1 have no checksum.

    Raises:
      QkjaxError: the file cannot be read, or its content has changed since it was written.
    """
    if not path.is_file():
        raise QkjaxError(f"{path} is not a file, expected a result; remove it")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            if opened.nbytes > LARGEST_RATIO * path.stat().st_size + (64 << 20):
                raise ValueError(f"its arrays have {opened.nbytes} bytes, many more than the file")
            data = opened.load()
        if DIGEST in data.attrs and data.attrs[DIGEST] != digest(data):
            raise ValueError("its content differs from its checksum")
    except Exception as error:  # h5netcdf raises many kinds of exceptions
        raise QkjaxError(f"cannot read the result {path} ({' '.join(str(error).split())[:200]}); remove it") from error
    return data


LARGEST_RATIO = 16
"""Largest ratio between the arrays of a result and its file, so that a small file cannot fill the memory."""
DIGEST = "digest"
"""Name of the attribute that contains the checksum of a dataset."""
STATED = ("settings", "checkpoint", "loaded_with")
"""Attributes that the checksum covers, in addition to all variables and coordinates."""


def digest(dataset: xr.Dataset) -> str:
    """The SHA-256 of a dataset's names, dimensions, shapes and values, and of the attributes in `STATED`."""
    total = hashlib.sha256()
    for name in STATED:
        total.update(f"{name}={dataset.attrs.get(name)}\n".encode(errors="backslashreplace"))
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        values = np.asarray(variable.values)
        if values.dtype.kind in "OUS":
            data = "\0".join(map(str, values.ravel().tolist())).encode(errors="backslashreplace")
        else:  # netCDF has no boolean values, and may change the order of bytes
            data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        total.update(f"{name} {variable.dims} {values.shape} {len(data)}\n".encode())
        total.update(data)
    return total.hexdigest()


HOW = ("model", "batch", "devices", "jax", "qkjax")
"""Settings that affect only the name of a result or the last bits of its numbers. Results that differ only in these
settings are equivalent."""


def read_earlier(path: Path, settings: Mapping[str, str], at_least: Sequence[str] = ()) -> xr.Dataset | None:
    """Reads the result of an earlier run with the same settings; returns None if the file does not exist.

    Args:
      path: the netCDF file.
      settings: the expected settings. The settings of the earlier run are in the attribute `settings`, as JSON.
      at_least: names of numeric settings that may have larger values in the earlier result.

    Raises:
      QkjaxError: the result has different settings or cannot be read. The function never overwrites the file, because
        its computation may have taken hours.
    """
    if not path.exists():
        return None
    data = read_result(path)
    earlier = stated_settings(data.attrs, path)
    try:
        enough = {*HOW, *(name for name in at_least if int(earlier.get(name, 0)) >= int(settings[name]))}
    except (KeyError, ValueError) as error:
        raise QkjaxError(f"the result {path} does not state its settings ({error!r}); remove it") from error
    if other := [name for name in settings if earlier.get(name) != settings[name] and name not in enough]:
        note = "; earlier versions stated only names and sizes of images" if "images" in other else ""
        raise QkjaxError(
            f"{path} has different settings ({', '.join(other)}): pass another folder as folder=..., or repeat the "
            f"command that wrote the file with fresh=True{note}"
        )
    return data


def stated_settings(attrs: Mapping, path: Path) -> dict[str, str]:
    """The settings in the attributes of a result that was read from a path.

    Raises:
      QkjaxError: the attributes do not contain settings.
    """
    try:
        return {name: str(value) for name, value in json.loads(attrs["settings"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise QkjaxError(f"the result {path} does not state its settings ({error!r}); remove it") from error


def texts(values: Sequence[str]) -> np.ndarray:
    """Converts strings to a form that netCDF can store: hidden characters and invalid bytes become escape sequences."""
    return np.array([visible(value) for value in values], dtype=object)
