"""Checkpoints in every format: one ViT of two layers, compared with its forward pass in float64 numpy."""

import json
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import qkjax

from . import arrays, containers, files, json_values
from .kind import Kind
from .vit import (
    CONFIG,
    POSITIONS,
    PREPROCESSOR,
    SIDE,
    big_vision_arrays,
    from_big_vision,
    hub_arrays,
    images,
    sine_positions,
    tokens,
)

LARGE = 1e5
"""Above it, rounding may decide the result: normalised tokens have the sum 0, and a kernel of equal large numbers
multiplies the rounding error of this sum."""
NAMED = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu"}


def load(path: Path, scratch: Path) -> tuple:
    """The checkpoint of a path, and its tokens after the last LayerNorm."""
    warnings.simplefilter("ignore")
    checkpoint = qkjax.load(path)
    _, captured = qkjax.forward(checkpoint, images())
    return checkpoint, np.asarray(captured["encoded"], np.float64)


def make(write: Callable, given: dict, name: str, root: Path, changes: list) -> Path:
    """Writes a checkpoint in a format, with changes of its arrays, its JSON files and its bytes."""
    write(root, arrays.changed(given, changes))
    for what, *arguments in changes:
        if what in files.NAMES_OF_CHANGES:
            files.apply(root, what, *arguments)
        elif what.startswith("json"):
            json_values.apply(root, what, *arguments)
        elif what in containers.CHANGES:
            containers.CHANGES[what](root, *arguments)
    return root / name


def read_config(path: Path) -> dict:
    """The configuration next to a model; {} if there is none."""
    file = path / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def check(read: Callable, path: Path, changes: list, result: tuple) -> None:
    """The tokens are those of the arrays that another library reads from the same files."""
    checkpoint, ours = result
    config = read_config(path) if path.is_dir() else {}
    eps = config.get("layer_norm_eps", 1e-12) if config else checkpoint.config.norm_eps
    activation = config.get("hidden_act", "gelu") if config else checkpoint.config.activation
    heads = config.get("num_attention_heads", 12) if config else checkpoint.config.heads
    assert type(heads) is int
    assert type(eps) in (int, float)
    with np.errstate(all="ignore"):
        given = {name.removeprefix("model."): array for name, array in read(path).items()}  # as training code writes
        if POSITIONS not in given and checkpoint.config.posemb == "sincos2d":  # as in big_vision's newer models
            given[POSITIONS] = sine_positions()
        if any(SIDE % size for size in given["embeddings.patch_embeddings.projection.weight"].shape[2:]):
            return  # patches of another size, of which the images have no whole number
        double, single = (tokens(given, heads, eps, NAMED.get(activation, activation), t) for t in ("f8", "f4"))
        assert double.shape == ours.shape
        large = max(np.abs(np.asarray(array, np.float64)).max() for array in given.values())
        if np.isfinite(single).all() and large < LARGE:  # the two differ by as much as rounding may matter
            tolerance = 2e-4 * max(1.0, np.abs(double).max()) + 30 * np.abs(single - double).max()
            np.testing.assert_allclose(ours, double, rtol=0, atol=tolerance)


def write_hub(root: Path, given: arrays.Arrays, shards: int = 1) -> None:
    """A folder of the Hugging Face hub."""
    from safetensors.numpy import save_file

    (root / "m").mkdir()
    (root / "m/config.json").write_text(json.dumps(CONFIG))
    (root / "m/preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if shards == 1:
        return save_file(given, root / "m/model.safetensors")
    names = sorted(given)
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({name: given[name] for name in names if places[name] == shard}, root / "m" / shard)
    index = {"metadata": {"total_size": sum(x.nbytes for x in given.values())}, "weight_map": places}
    return (root / "m/model.safetensors.index.json").write_text(json.dumps(index))


def read_hub(path: Path) -> dict:
    """The arrays of a folder of the hub, by the library safetensors alone."""
    from safetensors.numpy import load_file

    index = path / "model.safetensors.index.json"
    whole = path / "model.safetensors"
    if whole.is_file():
        return load_file(whole)
    if not index.is_file():
        return load_file(next(file for file in path.glob("*.safetensors") if file.is_file()))
    places = json.loads(index.read_text())["weight_map"]
    return {name: load_file(path / shard)[name] for name, shard in places.items()}


def write_npz(root: Path, given: arrays.Arrays) -> None:
    """big_vision's npz, with a bfloat16 member."""
    given = {f"params/{name}": array for name, array in given.items()}
    np.savez(root / "m.npz", **given)


def read_npz(path: Path) -> dict:
    """The arrays of an npz file, by zipfile and numpy alone."""
    with zipfile.ZipFile(path) as file:
        members = {name.removesuffix(".npy"): BytesIO(file.read(name)) for name in file.namelist()}
    stored = {name.removeprefix("params/"): np.lib.format.read_array(data) for name, data in members.items()}
    return from_big_vision({k: x.view(ml_dtypes.bfloat16) if x.dtype == "V2" else x for k, x in stored.items()})


def kind(write: Callable, read: Callable, given: dict, name: str, *more: st.SearchStrategy) -> Kind:
    """A kind of checkpoint."""
    changes = st.one_of(arrays.CHANGES, files.CHANGES, *more)
    return Kind(partial(make, write, given, name), changes, load, partial(check, read))


KINDS = {
    "safetensors": kind(write_hub, read_hub, hub_arrays(), "m", containers.SAFETENSORS),
    "hub": kind(partial(write_hub, shards=2), read_hub, hub_arrays(), "m", json_values.CHANGES, json_values.CHANGES),
    "npz": kind(write_npz, read_npz, big_vision_arrays(), "m.npz", containers.NPZ),
}
