"""`load`: a catalogue name, a file or a folder to a checked ViT."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from flax.traverse_util import unflatten_dict

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Preprocess
from qkjax.vit.config import SETTINGS, ViTConfig, check_settings
from qkjax.weights import catalogue, preprocessing
from qkjax.weights.checkpoint import CONFIG_KEY, PREPROCESS_KEY, Checkpoint, write_checkpoint
from qkjax.weights.download.fetch import local_file
from qkjax.weights.families import huggingface
from qkjax.weights.families.big_vision import check_finite, read_vit
from qkjax.weights.families.torch_layouts import to_vit
from qkjax.weights.formats import state_dict
from qkjax.weights.formats.json_object import read_json
from qkjax.weights.formats.npz import NpzFile
from qkjax.weights.formats.tensorstore import TensorstoreFolder, resolve


def split_submodel(path: str) -> tuple[str, str | None]:
    """Splits "file.npz:img" as big_vision does; a path that exists as it stands is left whole."""
    match = re.fullmatch(r"(.+?):([\w/]+)", path)
    if match and not os.path.exists(path) and not match[2].startswith("/"):
        return match[1], match[2]
    return path, None


def address(model: str | os.PathLike) -> str:
    """What `load` can be given later, from any folder: a name as it stands, a path made absolute."""
    text = os.fspath(model)
    if catalogue.is_name(text):
        return text
    path, sub = split_submodel(text)
    return os.path.abspath(path) + (f":{sub}" if sub else "")


def origin(model: str | os.PathLike, settings: Mapping) -> dict[str, str]:
    """What a result says of where its model came from, so that it can be loaded again: `address`, and settings."""
    return {"checkpoint": address(model), "loaded_with": json.dumps(dict(settings))}


def load(model: str | os.PathLike, **settings) -> Checkpoint:
    """Reads a ViT's configuration and parameters.

    Every public layout is brought to big_vision's present one: bare trees, `params/`, `opt/target/`;
    pre-Linen block names; position embeddings under `Transformer/`, with or without the class row
    (which is added to the class token: the same function); scanned blocks; the attention pooling
    probe at the top level; bfloat16; and the names of torch models (Hugging Face, timm, Meta).

    Args:
      model: a name from `qkjax models` or the id of a hub repository (fetched when absent); a path to
        an npz file, a tensorstore folder, a safetensors or PyTorch file, or a folder with one of
        these and its config.json; or a path followed by a sub-model, "siglip.npz:img".
      **settings: parts of `ViTConfig` that a tree does not show: `pool="none"` or "0" where
        "gap" is taken, `grid=(rows, columns)` of a position embedding that is not square,
        `norm_eps`, `activation`, `posemb_resample`; and the `heads` of a torch file, where neither
        its config.json nor its width tells.

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
    trained = os.path.join(path, "model.npz")  # of the folder of a run of `qkjax train`
    return _read(Path(trained if os.path.isfile(trained) else path), sub, name, settings)


def _load_named(entry: catalogue.Entry, settings: Mapping) -> Checkpoint:
    """A checkpoint of the catalogue; what lies in a PyTorch file is read with torch once, and kept as npz."""
    known = {"heads": entry.heads} if entry.heads else {}
    settings, listed = {**known, **settings}, preprocessing.from_entry(entry)
    converted = catalogue.folder() / "converted" / f"{entry.name.replace('/', '--')}.npz"
    if not converted.exists():
        path = local_file(entry.name)
        state = state_dict.find(path) if path.is_dir() else path
        if state is None or state.suffix not in state_dict.PICKLED:
            return _read(path, entry.sub, entry.name, settings, listed)
        plain = _read(path, entry.sub, entry.name, known)
        write_checkpoint(converted, plain.config, plain.params)
    said = preprocessing.from_folder(catalogue.path_of(entry.name))
    return _read(converted, None, entry.name, settings, said or listed)


def _read(path: Path, sub: str | None, name: str, settings: Mapping, listed: Preprocess | None = None) -> Checkpoint:
    """Any file or folder; `listed` is what the catalogue says of its images."""
    source = str(path) + (f":{sub}" if sub else "")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise QkjaxError(f"{path} is neither a file nor a folder")
        folder = resolve(path)
        state = state_dict.find(folder) if folder else path if state_dict.is_torch_file(path) else None
        if state:
            said = preprocessing.from_folder(state.parent)
            config, flat = _read_state_dict(state, sub, settings)
        else:
            with TensorstoreFolder(folder) if folder else NpzFile(path) as container:
                said = preprocessing.from_json(text) if (text := _own_text(container, PREPROCESS_KEY)) else None
                config, flat = _read_container(container, sub, settings)
    except (OSError, ValueError) as error:
        raise QkjaxError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except QkjaxError as error:
        raise error if str(path) in str(error) else QkjaxError(f"{path}: {error}") from error
    preprocess = said or listed or preprocessing.from_architecture(config)
    return Checkpoint(name, config, unflatten_dict(flat, sep="/"), source, preprocess)


def _read_state_dict(path: Path, sub: str | None, settings: Mapping):
    """A torch model's file; `sub` is the part of a file that holds several, such as I-JEPA's "predictor"."""
    said = path.parent / "config.json"
    settings = {**(huggingface.settings_of(read_json(said)) if said.is_file() else {}), **settings}
    readers = state_dict.open_state(path)
    if sub:
        readers = {k.removeprefix(f"{sub}/"): read for k, read in readers.items() if k.startswith(f"{sub}/")}
    parts = sorted({k.split("/")[0] for k in readers if "/" in k})
    if parts or not readers:
        raise QkjaxError(f"holds the models {', '.join(parts)}: name one, {path}:{(parts or ['encoder'])[0]}")
    return to_vit(readers, lambda name: check_finite(name, readers[name]()), settings)


def _read_container(container: NpzFile | TensorstoreFolder, sub: str | None, settings: Mapping):
    if text := _own_text(container, CONFIG_KEY):
        settings = {**_stored_settings(text), **settings}
    keys = [key for key in container.keys() if key not in (CONFIG_KEY, PREPROCESS_KEY)]  # noqa: SIM118
    return read_vit(container, keys, sub, settings)


def _own_text(container: NpzFile | TensorstoreFolder, key: str) -> str:
    """A text that only our own npz files hold; "" in others."""
    return container.text(key) if isinstance(container, NpzFile) and key in set(container.keys()) else ""


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
