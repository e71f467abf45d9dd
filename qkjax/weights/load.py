"""`load`: a catalogue name, an npz file or a tensorstore folder to a checked ViT."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from qkjax.errors import QkjaxError
from qkjax.vit.config import SETTINGS, ViTConfig, check_settings
from qkjax.weights import names
from qkjax.weights.infer import check_shapes, has_class_row, infer_config
from qkjax.weights.npz import NpzFile
from qkjax.weights.tensorstore import TensorstoreFolder, resolve

CONFIG_KEY = "qkjax/config"


@dataclass(frozen=True)
class Checkpoint:
    """A ViT read from somewhere.

    Attributes:
      name: catalogue name, or the file's own.
      config: its architecture.
      params: nested dict of numpy arrays, the Linen tree of `big_vision.models.vit.Model`, in the
        types of the file (bfloat16 as `ml_dtypes.bfloat16`).
      source: path it was read from.
    """

    name: str
    config: ViTConfig
    params: dict
    source: str


def split_submodel(path: str) -> tuple[str, str | None]:
    """Splits "file.npz:img" as big_vision does; a path that exists as it stands is left whole."""
    match = re.fullmatch(r"(.+?):([\w/]+)", path)
    if match and not os.path.exists(path) and not match[2].startswith("/"):
        return match[1], match[2]
    return path, None


def load(model: str | os.PathLike, **settings) -> Checkpoint:
    """Reads a ViT's configuration and parameters.

    Every public layout is brought to big_vision's present one: bare trees, `params/`, `opt/target/`;
    pre-Linen block names; position embeddings under `Transformer/`, with or without the class row
    (which is added to the class token: the same function); scanned blocks; the attention pooling
    probe at the top level; bfloat16.

    Args:
      model: a name from `qkjax models` (fetched when absent), a path to an npz file or a
        tensorstore folder, or either path followed by a sub-model, "siglip.npz:img".
      **settings: parts of `ViTConfig` that a tree does not show: `pool="none"` or "0" where
        "gap" is taken, `grid=(rows, columns)` of a position embedding that is not square,
        `norm_eps`, `gelu`, `posemb_resample`.

    Returns:
      The checkpoint, checked: every parameter there, of the right shape, finite.

    Raises:
      QkjaxError: one line that says what is wrong with which file.
    """
    from qkjax.weights import catalogue

    text, settings = os.fspath(model), check_settings(settings)
    if catalogue.is_name(text):
        return _read(catalogue.local_file(text), None, text, settings)
    path, sub = split_submodel(text)
    return _read(Path(path), sub, Path(path).stem, settings)


def _read(path: Path, sub: str | None, name: str, settings: Mapping) -> Checkpoint:
    folder = resolve(path)
    with TensorstoreFolder(folder) if folder else NpzFile(path) as container:
        try:
            config, params = _read_container(container, sub, settings)
        except QkjaxError as error:
            where = str(container.path)
            raise error if where in str(error) else QkjaxError(f"{where}: {error}") from error
    return Checkpoint(name, config, params, str(path) + (f":{sub}" if sub else ""))


def _read_container(container: NpzFile | TensorstoreFolder, sub: str | None, settings: Mapping):
    keys = container.keys()
    if isinstance(container, NpzFile) and CONFIG_KEY in keys:
        settings = {**_stored_settings(container.text(CONFIG_KEY)), **settings}
    keys = names.subtree([k for k in keys if k != CONFIG_KEY], sub, str(container.path))
    scanned = next((full for k, full in keys.items() if k.startswith(f"{names.BLOCK}/LayerNorm_0/")), None)
    scan_shape = container.header(scanned).shape if scanned else (None,)
    stored = names.canonical(keys, scan_shape[0] if scan_shape else None)
    headers = {name: container.header(s.key) for name, s in stored.items()}
    for name, header in headers.items():
        if header.dtype.kind not in "fV" or header.dtype.itemsize not in (2, 4, 8):
            raise QkjaxError(f"parameter {name!r} is of type {header.dtype}, wanted floating point numbers")
    shapes = {name: h.shape if stored[name].layer is None else h.shape[1:] for name, h in headers.items()}
    config = infer_config(shapes, settings)
    class_row = has_class_row(shapes, config.grid)
    if class_row:
        shapes["pos_embedding"] = (1, shapes["pos_embedding"][1] - 1, *shapes["pos_embedding"][2:])
    check_shapes(shapes, config)
    _check_memory(sum(np.prod(s, dtype=float) * headers[n].dtype.itemsize for n, s in shapes.items()))
    arrays = _read_arrays(container, stored)
    if class_row:
        arrays["cls"] = arrays["cls"] + arrays["pos_embedding"][:, :1]
        arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    return config, unflatten_dict(arrays, sep="/")


def _stored_settings(text: str) -> dict:
    """Of the configuration in our own files, what shapes do not show; the rest is inferred again."""
    try:
        values = json.loads(text).items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise QkjaxError(f"member {CONFIG_KEY!r} is not a configuration in JSON ({error})") from error
    return check_settings({k: v for k, v in values if k in SETTINGS and v is not None})


def _check_memory(needed: float) -> None:
    try:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this platform: the allocation itself will tell
        return
    if needed > have:
        raise QkjaxError(f"the parameters need {needed / 2**30:.0f} GiB and this machine has {have / 2**30:.0f} GiB")


def _read_arrays(container: NpzFile | TensorstoreFolder, stored: Mapping[str, names.Stored]) -> dict[str, np.ndarray]:
    whole: dict[str, np.ndarray] = {}
    arrays = {}
    for name, (key, layer) in stored.items():
        if key not in whole:
            whole[key] = container.read(key)
            if not np.isfinite(whole[key]).all():
                raise QkjaxError(f"parameter {name!r} holds NaN or infinite values: the checkpoint is broken")
        arrays[name] = whole[key] if layer is None else whole[key][layer]
    return arrays
