"""Reads and writes the file with the progress of a pass, from which the next call resumes the pass."""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.sets import Unreadable
from qkjax.runtime.files import atomic_path


def write_partial(
    path: Path, settings: Mapping[str, str], arrays: Mapping[str, np.ndarray], unreadable: Unreadable
) -> None:
    """Writes the progress of a pass atomically. No array may have the name "settings", "unreadable" or "layout".

    Raises:
      QkjaxError: the file cannot be written.
    """
    values = {"settings": dict(settings), "unreadable": unreadable, "layout": _layout(arrays)}
    texts = {name: json.dumps(value) for name, value in values.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, **{name: np.array(text) for name, text in texts.items()})


def read_partial(path: Path, settings: Mapping[str, str]) -> tuple[dict[str, np.ndarray], Unreadable] | None:
    """Reads the arrays and the unreadable images of an interrupted pass; returns None if the file does not exist.

    Raises:
      QkjaxError: the file has different settings, cannot be read, or lacks an array.
    """
    if not path.exists():
        return None
    advice = f"remove {path} to start again, or pass fresh=True"
    if not path.is_file():
        raise QkjaxError(f"{path} is not a file, expected a file with the progress of a pass; {advice}")
    try:
        with arrays_in(path) as file:
            arrays = {name: file[name] for name in file}
        texts = ("settings", "unreadable", "layout")
        earlier, unreadable, layout = (json.loads(str(arrays.pop(name))) for name in texts)
        if not isinstance(earlier, dict):
            raise ValueError("its settings are not an object")
        if layout != _layout(arrays):
            raise ValueError("the arrays in the file differ from the arrays that were written")
        unreadable = tuple((int(index), str(reason)) for index, reason in unreadable)
        different = [name for name in settings if settings[name] != earlier.get(name)]
    except Exception as error:  # zipfile, numpy and json raise many types of errors
        reason = " ".join(str(error).split())[:200]
        raise QkjaxError(f"cannot read the interrupted pass {path} ({reason}); {advice}") from error
    if different:
        raise QkjaxError(
            f"{path} contains an interrupted pass with different settings ({', '.join(different)}): run again with "
            f"the same settings as before, or {advice}"
        )
    return arrays, unreadable


def interrupted_settings(path: Path) -> dict[str, str]:
    """The settings of an interrupted pass, or none if the file does not exist or cannot be read; see `read_partial`."""
    try:
        settings = json.loads(str(_one_array(path, "settings")))
    except Exception:  # zipfile, numpy and json raise many types of errors
        return {}
    return {name: str(value) for name, value in settings.items()} if isinstance(settings, dict) else {}


def batches_done(path: Path) -> int | None:
    """The number of batches in the file of a pass, without reading its other arrays; None if there is no such file.

    The number is also None if the file cannot be read; `read_partial` states the reason.
    """
    try:
        return int(_one_array(path, "done"))
    except Exception:  # zipfile and numpy raise many types of errors
        return None


def _one_array(path: Path, name: str) -> np.ndarray:
    if not path.is_file():  # opening a pipe would wait for a writer
        raise FileNotFoundError(path)
    with arrays_in(path) as file:
        return file[name]


@contextmanager
def arrays_in(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens the arrays in a file that `np.savez` wrote, which does not compress them.

    Raises:
      ValueError: the members are larger than the file, so unpacking them could fill the memory.
      Exception: zipfile and numpy raise many types of errors.
    """
    # If numpy opened the file itself and failed to read it, numpy would not close the file.
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        if (total := sum(member.file_size for member in file.zip.infolist())) > (size := path.stat().st_size):
            raise ValueError(f"its members have {total} bytes, but the file has {size}: it is compressed")
        yield file


def _layout(arrays: Mapping[str, np.ndarray]) -> dict[str, list]:
    """The type, the checksum and the shape of each array, as JSON values."""
    return {name: [str(x.dtype), zlib.crc32(x.tobytes()), *x.shape] for name, x in arrays.items()}


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """A checksum (one number) of the names, dtypes, shapes and values of arrays."""
    return zlib.crc32(json.dumps(_layout(arrays), sort_keys=True).encode())
