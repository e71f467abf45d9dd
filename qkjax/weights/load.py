"""Contains `load`, which reads a ViT from a catalogue name, a file, a folder or memory, and checks the ViT."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict

from qkjax.errors import AssumptionWarning, QkjaxError
from qkjax.images.preprocess import Preprocess
from qkjax.runtime.visible import visible
from qkjax.vit.config import SETTINGS, ViTConfig, check_settings
from qkjax.weights import catalogue, memory, preprocessing
from qkjax.weights.checkpoint import (
    CONFIG_KEY,
    NOTES_KEY,
    OWN_KEYS,
    PREPROCESS_KEY,
    Checkpoint,
    stored_config,
    write_checkpoint,
)
from qkjax.weights.download.address import address as address_of
from qkjax.weights.download.fetch import fetch
from qkjax.weights.download.record import other_source, write_record
from qkjax.weights.families import described
from qkjax.weights.families.big_vision import assumptions, read_vit
from qkjax.weights.families.facts import Facts, ParsedModel
from qkjax.weights.families.read_all import check_finite, read_all
from qkjax.weights.families.stated import StatedPreprocess
from qkjax.weights.families.tips import is_tips, read_tips
from qkjax.weights.families.torch_layouts import read_state
from qkjax.weights.families.torch_towers import split_models
from qkjax.weights.formats import state_dict
from qkjax.weights.formats.file_names import PICKLED
from qkjax.weights.formats.npz import NpzFile
from qkjax.weights.formats.tensorstore import TensorstoreFolder, resolve


def split_submodel(path: str) -> tuple[str, str | None]:
    """Splits "file.npz:img" into path and sub-model, as big_vision does. A path that exists is not split."""
    match = re.fullmatch(r"(.+?):([\w/-]+)", path)
    if match and not os.path.exists(path) and not match[2].startswith("/"):
        return match[1], match[2]
    return path, None


def address(model: str | os.PathLike) -> str:
    """Makes a path absolute, so that `load` accepts it from any working directory; a name stays unchanged."""
    text = os.fspath(model)
    if catalogue.is_name(text):
        return text
    path, sub = split_submodel(text)
    return os.path.abspath(path) + (f":{sub}" if sub else "")


def origin(model: str | os.PathLike, settings: Mapping) -> dict[str, str]:
    """The attributes of a result with which its model can be loaded again: the model's `address`, and the settings."""
    return {"checkpoint": address(model), "loaded_with": json.dumps(dict(settings))}


def load(model: Any, **settings) -> Checkpoint:
    """Loads a ViT: reads its architecture and its parameters, and checks both.

    The function converts every public layout to big_vision's current layout. The function reads bare trees, `params/`
    and `opt/target/`, block names from before Linen, scanned blocks, bfloat16, and the names of torch models (Hugging
    Face, timm, Meta). Position embeddings may be under `Transformer/`, with or without a row for the class token. The
    probe of attention pooling may be at the top level.

    Args:
      model: a name, a path, or a model in memory. A name is listed by `qkjax models` or is a Hugging Face id; the model
        is downloaded if it is not on disk. A path refers to an npz, safetensors or PyTorch file, a tensorstore folder,
        a folder that contains one of these and config.json, or a folder written by `qkjax train`. A sub-model may
        follow the path, as in "siglip.npz:img". A model in memory, whose parameters are copied, is a torch module, an
        Equinox module of Equimo, a flax.nnx module or state, or a dictionary of arrays.
      **settings: fields of `ViTConfig` that cannot be inferred from the parameters. These fields are `pool="none"` or
        "0" (the default is "gap" if there is no class token), `grid=(rows, columns)` if the position embedding is not
        square, `norm_eps`, `activation`, `posemb_resample`, and `heads` for a torch file that does not state this
        number.

    Returns:
      The checkpoint. All its parameters are present and finite, and have the right shapes.

    Raises:
      QkjaxError: the name or a setting is invalid, the file is missing, damaged or not a ViT, or the download failed.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> checkpoint.name
      'dinov2-vits14-focus'
      >>> checkpoint.config.depth, checkpoint.config.heads
      (12, 6)
    """
    settings = check_settings(settings)
    if not isinstance(model, str | os.PathLike):
        return _in_memory(model, settings)
    text = os.fspath(model)
    if catalogue.is_name(text):
        return _load_entry(catalogue.entry(text), settings)
    path, sub = split_submodel(text)
    absolute = Path(os.path.abspath(path))
    name = visible(absolute.name if os.path.isdir(absolute) else absolute.stem)
    if not name.strip("."):
        raise QkjaxError(f"{path}: the file name, which results use, consists only of dots; rename the file")
    trained = os.path.join(path, "model.npz")  # the path is the folder of a run of `qkjax train`
    return _read(Path(trained if os.path.isfile(trained) else path), sub, name, settings)


def _in_memory(model: Any, settings: Mapping) -> Checkpoint:
    """Reads a model in memory."""
    data, stated = memory.read(model, settings)
    return _checkpoint(memory.name_of(model), data, f"{type(model).__module__}.{type(model).__name__}", stated, None)


def _load_entry(entry: catalogue.Entry, settings: Mapping) -> Checkpoint:
    """Loads an entry of the catalogue. A PyTorch file is read once with torch, and then stored as npz."""
    known = {"heads": entry.heads} if entry.heads else {}
    settings, from_catalogue = {**known, **settings}, preprocessing.from_entry(entry)
    converted = catalogue.folder() / "converted" / f"{entry.name.replace('/', '--')}.npz"
    source = f"{address_of(entry)}:{entry.sub or ''}"
    if not converted.exists() or other_source(converted, source):
        path = fetch(entry.name)
        state = state_dict.find(path) if path.is_dir() else path
        if state is None or state.suffix not in PICKLED:
            return _read(path, entry.sub, entry.name, settings, from_catalogue=from_catalogue)
        (config, flat, notes), _ = _read_model(path, entry.sub, known)
        write_checkpoint(converted, config, unflatten_dict(flat, sep="/"), notes=notes)
        write_record(converted, source)
    original = preprocessing.from_folder(catalogue.path_of(entry.name))
    return _read(converted, None, entry.name, settings, original, from_catalogue)


def _read(
    path: Path,
    sub: str | None,
    name: str,
    settings: Mapping,
    original: StatedPreprocess | None = None,
    from_catalogue: Preprocess | None = None,
) -> Checkpoint:
    """Reads any file or folder.

    Args:
      original: the preprocessing that the original files state. This preprocessing is used if none is stored with the
        model.
      from_catalogue: the preprocessing in the catalogue, which is used if no file states how images are preprocessed.
    """
    data, stored = _read_model(path, sub, settings)
    return _checkpoint(name, data, str(path) + (f":{sub}" if sub else ""), stored or original, from_catalogue)


def _checkpoint(
    name: str, data: ParsedModel, source: str, stated: StatedPreprocess | None, from_catalogue: Preprocess | None
) -> Checkpoint:
    """Makes the checkpoint, and warns about values that qkjax assumed."""
    config, flat, notes = data
    try:
        preprocess, assumed = preprocessing.resolve(stated, from_catalogue, config)
    except QkjaxError as error:
        raise QkjaxError(f"{source}: {error}") from error
    notes = (*notes, *assumed)
    for note in notes:
        warnings.warn(f"{name}: {note}", AssumptionWarning, stacklevel=4)
    return Checkpoint(name, config, unflatten_dict(flat, sep="/"), source, preprocess, notes)


def _read_model(path: Path, sub: str | None, settings: Mapping) -> tuple[ParsedModel, StatedPreprocess | None]:
    """Reads the model in a file or folder, and the preprocessing that is stored with it."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise QkjaxError(f"{path} is neither a file nor a folder")
        folder = resolve(path)
        state = state_dict.find(folder) if folder else path if state_dict.is_torch_file(path) else None
        if folder and not state and not any(f.is_file() for f in folder.glob("*/.zarray")):
            raise QkjaxError(state_dict.no_model_message(folder))
        if state:
            stored = preprocessing.from_folder(state.parent)
            config, flat, notes = _read_state_dict(state, sub, settings)
        else:
            with TensorstoreFolder(folder) if folder else NpzFile(path) as container:
                text = _text(container, PREPROCESS_KEY)
                stored = StatedPreprocess(path.name, vars(preprocessing.from_json(text))) if text else None
                config, flat, notes = _read_container(container, sub, settings)
    except (OSError, ValueError) as error:
        raise QkjaxError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except QkjaxError as error:
        raise error if str(path) in str(error) else QkjaxError(f"{path}: {error}") from error
    return (config, flat, notes), stored


def _read_state_dict(path: Path, sub: str | None, settings: Mapping) -> ParsedModel:
    """Reads the file of a torch model. `sub` selects one of several models in it, such as I-JEPA's "predictor"."""
    facts = described.facts_beside(path)
    return read_state(*_chosen_model(path, state_dict.open_state(path), sub, facts), settings)


def _chosen_model(
    path: Path, stored: Mapping[str, state_dict.Readers], sub: str | None, facts: Facts
) -> tuple[state_dict.Readers, Facts]:
    """Chooses one model in a file; returns readers of its parameters, and facts with a note that names the model.

    Raises:
      QkjaxError: the file contains several models, and `sub` is not one of them; the message lists the models.
    """
    models = {}
    for name, readers in stored.items():
        for part, names in split_models(readers).items():
            models[f"{name}/{part}".strip("/")] = {short: readers[full] for short, full in names.items()}
    if sub in models:
        return models[sub], facts
    if sub is None and len(models) == 1:
        name, readers = next(iter(models.items()))
        return readers, facts.with_notes(f"qkjax reads {name!r}, the only model in the file") if name else facts
    listed = ", ".join(f"{name or 'the top level'} ({len(readers)} parameters)" for name, readers in models.items())
    if sub is not None:
        raise QkjaxError(f"{path} contains no model {sub!r}; it contains {listed or 'none'}")
    if not models:
        raise QkjaxError(f"{path} contains no parameters")
    raise QkjaxError(f"{path} contains several models: {listed}; choose one, as in {path}:{next(filter(None, models))}")


def _read_container(container: NpzFile | TensorstoreFolder, sub: str | None, settings: Mapping) -> ParsedModel:
    keys = [key for key in container.keys() if key not in OWN_KEYS]  # noqa: SIM118
    if text := _text(container, CONFIG_KEY):
        notes = tuple(map(str, json.loads(_text(container, NOTES_KEY) or "[]")))
        stored = stored_config(text)
        if stored.get("weights_only"):
            arrays = read_all(lambda key: check_finite(key, container.read(key)), keys)
            return ViTConfig(**stored), {key.removeprefix("params/"): array for key, array in arrays.items()}, notes
        posemb = {"posemb": stored["posemb"]} if stored.get("rotary") and "posemb" in stored else {}
        stored = check_settings({k: v for k, v in stored.items() if k in SETTINGS and v is not None}) | posemb
        return *read_vit(container, keys, sub, {**stored, **settings}), notes
    if is_tips(keys):
        return read_tips(container, keys, settings)
    if keys and not any("/" in key for key in keys):  # names of a torch model, as in TIPS's PyTorch files
        readers = {key: partial(container.read, key) for key in keys}
        return read_state(*_chosen_model(container.path, {"": readers}, sub, Facts()), settings)
    config, flat = read_vit(container, keys, sub, settings)
    return config, flat, assumptions(config, settings)


def _text(container: NpzFile | TensorstoreFolder, key: str) -> str:
    """A text member of an npz file that qkjax wrote, or "" for any other container."""
    return container.text(key) if isinstance(container, NpzFile) and key in set(container.keys()) else ""
