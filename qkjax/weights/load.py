"""`load`: a catalogue name, a file or a folder to a checked ViT."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from qkjax.errors import QkjaxError
from qkjax.vit.config import SETTINGS, ViTConfig, check_settings
from qkjax.weights import catalogue, huggingface, names, state_dict
from qkjax.weights.infer import check_shapes, has_class_row, infer_config
from qkjax.weights.npz import NpzFile, weight_dtype
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
        `norm_eps`, `activation`, `posemb_resample`.

    Returns:
      The checkpoint, checked: every parameter there, of the right shape, finite.

    Raises:
      QkjaxError: one line that says what is wrong with which file.
    """
    text, settings = os.fspath(model), check_settings(settings)
    if catalogue.is_name(text):
        return _load_named(catalogue.entry(text), settings)
    path, sub = split_submodel(text)
    whole = Path(os.path.abspath(path))
    name = (whole.name if os.path.isdir(whole) else whole.stem).encode(errors="replace").decode()
    return _read(Path(path), sub, name, settings)


def _load_named(entry: catalogue.Entry, settings: Mapping) -> Checkpoint:
    """A checkpoint of the catalogue; a PyTorch file of the hub is read with torch once, and kept as npz."""
    converted = catalogue.folder() / "converted" / f"{entry.name.replace('/', '--')}.npz"
    if not converted.exists():
        path = catalogue.local_file(entry.name)
        if not (path.is_dir() and (state := state_dict.find(path)) and state.suffix == ".bin"):
            return _read(path, entry.sub, entry.name, settings)
        from qkjax.weights.export import save

        plain = _read(path, entry.sub, entry.name, {})
        save(converted, plain.config, plain.params)
    return _read(converted, None, entry.name, settings)


def _read(path: Path, sub: str | None, name: str, settings: Mapping) -> Checkpoint:
    source = str(path) + (f":{sub}" if sub else "")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise QkjaxError(f"{path} is neither a file nor a folder")
        folder = resolve(path)
        state = state_dict.find(folder) if folder else path if _is_torch_file(path) else None
        if state:
            config, flat = _read_state_dict(state, sub, settings)
        else:
            with TensorstoreFolder(folder) if folder else NpzFile(path) as container:
                config, flat = _read_container(container, sub, settings)
    except (OSError, ValueError) as error:
        raise QkjaxError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except QkjaxError as error:
        raise error if str(path) in str(error) else QkjaxError(f"{path}: {error}") from error
    return Checkpoint(name, config, unflatten_dict(flat, sep="/"), source)


def _is_torch_file(path: Path) -> bool:
    """By content: a safetensors header, a pickle, or a zip with a pickle in it."""
    if path.name.endswith(".index.json"):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # the npz reader says what is wrong
    return start[8:9] == b"{" or start[:2] in (b"\x80\x02", b"\x80\x04")


def _read_state_dict(path: Path, sub: str | None, settings: Mapping):
    """A torch model's file; `sub` is the part of a file that holds several, such as I-JEPA's "predictor"."""
    said = path.parent / "config.json"
    settings = {**(huggingface.settings_of(state_dict.read_json(said)) if said.is_file() else {}), **settings}
    readers = state_dict.open_state(path)
    if sub:
        readers = {k.removeprefix(f"{sub}/"): read for k, read in readers.items() if k.startswith(f"{sub}/")}
    parts = sorted({k.split("/")[0] for k in readers if "/" in k})
    if parts or not readers:
        raise QkjaxError(f"holds the models {', '.join(parts)}: name one, {path}:{(parts or ['encoder'])[0]}")
    flat = huggingface.to_tree(readers, lambda name: _finite(name, readers[name]()), settings.get("heads"))
    shapes = {name: array.shape for name, array in flat.items()}
    settings = {**huggingface.defaults(shapes), **settings}
    config = infer_config(shapes, settings)
    check_shapes(shapes, config)
    return config, flat


def _read_container(container: NpzFile | TensorstoreFolder, sub: str | None, settings: Mapping):
    keys = container.keys()
    if isinstance(container, NpzFile) and CONFIG_KEY in keys:
        settings = {**_stored_settings(container.text(CONFIG_KEY)), **settings}
    keys = names.subtree([k for k in keys if k != CONFIG_KEY], sub, str(container.path))
    by_key = {full: container.header(full) for full in keys.values()}
    for full, header in by_key.items():
        if weight_dtype(header.dtype) is None:
            raise QkjaxError(f"parameter {full!r} is of type {header.dtype}, wanted floating point numbers")
    stored = names.canonical(keys, {full: header.shape for full, header in by_key.items()})
    headers = {name: by_key[s.key] for name, s in stored.items()}
    shapes = {name: h.shape if stored[name].layer is None else h.shape[1:] for name, h in headers.items()}
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
    return config, arrays


def _stored_settings(text: str) -> dict:
    """Of the configuration in our own files, what shapes do not show; the rest is inferred again."""
    try:
        values = json.loads(text).items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise QkjaxError(f"member {CONFIG_KEY!r} is not a configuration in JSON ({error})") from error
    if unknown := {name for name, _ in values} - set(ViTConfig.__dataclass_fields__):
        raise QkjaxError(
            f"member {CONFIG_KEY!r} has {min(unknown)!r}, of another version of qkjax: fetch or save it anew"
        )
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
            whole[key] = _finite(name, container.read(key))
        arrays[name] = whole[key] if layer is None else whole[key][layer]
    return arrays


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise QkjaxError(f"parameter {name!r} holds NaN or infinite values: the checkpoint is broken")
    return array
