"""Reads the tensorstore folders that big_vision has written since October 2023.

A checkpoint is a folder with one zarr array per parameter; the keys contain '~' instead of '/'. The folder's name ends
in a step number, which the text file `NAME-LAST` next to the folder also states.
"""

import json
import re
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.formats.npz import Header, weight_dtype


def resolve(path: Path) -> Path | None:
    """The folder `path`, or the folder to which the file `path-LAST` refers; None if neither exists.

    Raises:
      QkjaxError: `path-LAST` does not contain a step, or refers to a folder that does not exist.
    """
    if path.is_dir():
        return path
    last = path.with_name(path.name + "-LAST")
    if not last.is_file():
        return None
    step = last.read_text(errors="replace").strip()
    if not re.fullmatch(r"\d{1,20}(-tmp)?", step):
        raise QkjaxError(f"{last} contains {step[:40]!r}, expected a step such as 000012345")
    folder = path.with_name(f"{path.name}-{step}")
    if not folder.is_dir():
        raise QkjaxError(f"{last} refers to {folder.name}, which does not exist: copy the checkpoint again")
    return folder


class TensorstoreFolder:
    """An open tensorstore folder. The object has the methods `keys`, `header` and `read`, like `NpzFile`.

    Raises (all methods):
      QkjaxError: the folder contains no arrays, or an array is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._folders = {
            f.parent.name.replace("~", "/"): f.parent for f in sorted(path.glob("*/.zarray")) if f.is_file()
        }
        if not self._folders:
            raise QkjaxError(f"{path} is not a checkpoint: it contains no '<parameter>/.zarray'")
        self._open: dict = {}

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._open.clear()

    def keys(self) -> list[str]:
        """The keys of all arrays."""
        return list(self._folders)

    def _array(self, key: str):
        import tensorstore

        if key not in self._open:
            self._check_metadata(key)
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(self._folders[key])}}
            try:
                self._open[key] = tensorstore.open(spec, read=True).result()
            except (ValueError, OSError) as error:
                raise self._damaged(key, error) from error
        return self._open[key]

    def _check_metadata(self, key: str) -> dict:
        """Checks the `.zarray` of an array, so that tensorstore cannot allocate more memory than the array needs."""
        try:
            metadata = json.loads((self._folders[key] / ".zarray").read_text())
            shape, chunks = metadata["shape"], metadata["chunks"]
            whole = all(type(n) is int and n > 0 for n in [*shape, *chunks])
            fits = len(shape) == len(chunks) and all(c <= n for c, n in zip(chunks, shape, strict=False))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(key, error) from error
        if not (whole and fits):
            raise self._damaged(key, ValueError(f"shape {shape} in chunks of {chunks}"))
        return metadata

    def _damaged(self, key: str, error: Exception) -> QkjaxError:
        return QkjaxError(f"{self.path}: array {key!r} is damaged ({str(error).splitlines()[0][:200]}); copy it again")

    def header(self, key: str) -> Header:
        """The shape and the dtype of an array."""
        array = self._array(key)
        dtype = array.dtype.numpy_dtype
        return Header(tuple(array.shape), weight_dtype(dtype) or dtype)

    def read(self, key: str) -> np.ndarray:
        """Reads all chunks of an array.

        A missing chunk raises an error, although zarr would read it as zeros.
        """
        array = self._array(key)
        try:
            metadata = self._check_metadata(key)
            grid = [-(-n // c) for n, c in zip(metadata["shape"], metadata["chunks"], strict=True)]
            between = metadata.get("dimension_separator", ".")
            names = [between.join(map(str, i)) or "0" for i in np.ndindex(*grid)]
            if missing := [n for n in names if not (self._folders[key] / n).is_file()]:
                raise OSError(f"chunk {missing[0]} is missing")
            return np.asarray(array.read().result())
        except (ValueError, OSError) as error:
            raise self._damaged(key, error) from error
