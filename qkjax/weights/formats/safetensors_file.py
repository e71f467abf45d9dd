"""Reads safetensors files.

The library safetensors checks the header: that the arrays lie within the file, and neither overlap nor leave holes. The
arrays themselves are read by `read_bytes`, which copies them once and in any thread.
"""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.formats.blocks import read_bytes, stamp_of

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of numbers that are read, by their names in the header."""
LENGTH = 8  # bytes at the start of the file, which contain the length of the header


def open_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """A dict from the name of each array to a function that reads it.

    Raises:
      QkjaxError: the file is damaged. The functions raise this error if the file has changed since, or if an array does
        not consist of floating point numbers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as opened, safe_open(path, "np") as file:
            stamp = stamp_of(opened.fileno())
            length = int.from_bytes(opened.read(LENGTH), "little")
            header = json.loads(opened.read(length))
            listed = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(array.get_shape()) for name, array in listed.items()}
            header = {name: header[name] for name in listed}
            places = {name: tuple(array["data_offsets"]) for name, array in header.items()}
            stored = {name: array["dtype"] for name, array in header.items()}
            if any(tuple(array["shape"]) != shapes[name] for name, array in header.items()):
                raise ValueError("its header can be read in two ways")
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise QkjaxError(f"{path} is damaged ({error}); download or copy it again") from error

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            if stored[name] not in DTYPES:
                raise QkjaxError(f"{path}: {name!r} is stored as {stored[name]}, expected one of {', '.join(DTYPES)}")
            dtype, (begin, end) = DTYPES[stored[name]], places[name]
            try:
                if end - begin != prod(shapes[name]) * dtype.itemsize:
                    raise ValueError(f"{name!r} has {end - begin} bytes, which do not fit its shape {shapes[name]}")
                data = read_bytes(path, stamp, LENGTH + length + begin, end - begin)
            except (OSError, EOFError, ValueError) as error:
                raise QkjaxError(f"{path} is damaged ({error}); download or copy it again") from error
            return data.view(dtype).reshape(shapes[name])

        return read

    return {name: reader(name) for name in listed}
