"""Reads checkpoints of big_vision and vision_transformer (npz, tensorstore) into canonical arrays, and checks them."""

import os
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig
from qkjax.weights.families import big_vision_names as names
from qkjax.weights.families.architecture import check_shapes, has_class_row, infer_config
from qkjax.weights.families.read_all import check_finite, read_all
from qkjax.weights.formats.npz import Header, weight_dtype


@runtime_checkable
class Container(Protocol):
    """A collection of arrays with names: an open file or folder, or a dictionary in memory."""

    path: Path

    def header(self, key: str) -> Header:
        """The shape and the dtype of an array."""
        ...

    def read(self, key: str) -> np.ndarray:
        """Reads an array."""
        ...


ASSUMED = ("pool", "grid", "activation", "norm_eps", "posemb_resample")
"""Settings that big_vision's parameters do not determine, with big_vision's defaults."""


def read_vit(
    container: Container, keys: Iterable[str], sub: str | None, settings: Mapping
) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    """Reads and checks the parameters in a container; returns the architecture, and a flat dict of canonical arrays.

    The function first reads and checks the headers. If the file is not a ViT, the function therefore loads no array.

    Args:
      container: an open file or folder.
      keys: keys of the parameters in the container.
      sub: the sub-model, such as "img"; None if the container contains only the ViT.
      settings: settings in `ViTConfig` that the shapes do not determine.

    Raises:
      QkjaxError: the container is not a ViT; a parameter is missing, unexpected or not finite, or has a wrong shape or
        dtype; or the parameters do not fit into memory.
    """
    keys = names.subtree(keys, sub, str(container.path))
    by_key = {full: container.header(full) for full in keys.values()}
    for full, header in by_key.items():
        if weight_dtype(header.dtype) is None:
            raise QkjaxError(f"parameter {full!r} has dtype {header.dtype}, expected floating point numbers")
    stored = names.canonical(keys, {full: header.shape for full, header in by_key.items()})
    headers = {name: by_key[s.key] for name, s in stored.items()}
    shapes = {name: h.shape if stored[name].layer is None else h.shape[1:] for name, h in headers.items()}
    flattened = naflex_shapes(shapes)
    if flattened:
        shapes |= flattened
        settings = {"posemb_resample": "bilinear_antialias", **settings}
    config = infer_config(shapes, settings)
    class_row = has_class_row(shapes, config.grid)
    if class_row:
        first, rows, *rest = shapes["pos_embedding"]
        shapes["pos_embedding"] = (first, rows - 1, *rest)
    check_shapes(shapes, config)
    _check_memory(sum(np.prod(s, dtype=float) * headers[n].dtype.itemsize for n, s in shapes.items()))
    arrays = _read_arrays(container, stored)
    if class_row:
        arrays["cls"] = arrays["cls"] + arrays["pos_embedding"][:, :1]
        arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    arrays |= {name: arrays[name].reshape(shape) for name, shape in flattened.items()}
    return config, arrays


def naflex_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """For a NaFlex ViT, the shapes of its patch and position embedding in an equivalent plain ViT; otherwise {}.

    NaFlex (SigLIP 2, arXiv 2502.14786) embeds patches with a dense layer, whose inputs are the pixels of a patch, row
    by row. NaFlex has one position embedding for each cell of a square grid. On images with this grid, NaFlex equals a
    plain ViT.

    Raises:
      QkjaxError: the patches are not square patches of 3 channels, or the grid is not square.
    """
    kernel, positions = shapes.get("embedding/kernel", ()), shapes.get("pos_embedding", ())
    if len(kernel) != 2:
        return {}
    side = isqrt(kernel[0] // 3)
    if 3 * side**2 != kernel[0] or len(positions) != 3 or positions[0] != positions[1]:
        raise QkjaxError(
            f"the dense patch embedding of shape {kernel} looks like that of a NaFlex ViT: expected 3 channels of a "
            f"square patch, and a position embedding of shape (n, n, {kernel[1]}) instead of {positions}"
        )
    return {
        "embedding/kernel": (side, side, 3, kernel[1]),
        "pos_embedding": (1, positions[0] * positions[1], positions[2]),
    }


def assumptions(config: ViTConfig, settings: Mapping) -> tuple[str, ...]:
    """A note on settings that are not stated anywhere, for which big_vision's defaults are used."""
    listed = ", ".join(f"{name}={getattr(config, name)!r}" for name in ASSUMED if name not in settings)
    return (f"assumed, as in big_vision: {listed}",) if listed else ()


def _check_memory(needed: float) -> None:
    try:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # unknown on this platform: the allocation may fail later
        return
    if needed > have:
        raise QkjaxError(f"the parameters need {needed / 2**30:.0f} GiB, but this machine has {have / 2**30:.0f} GiB")


def _read_arrays(container: Container, stored: Mapping[str, names.Stored]) -> dict[str, np.ndarray]:
    first: dict[str, str] = {}
    for name, (key, _) in stored.items():
        first.setdefault(key, name)
    whole = read_all(lambda key: check_finite(first[key], container.read(key)), first)
    return {name: whole[key] if layer is None else whole[key][layer] for name, (key, layer) in stored.items()}
