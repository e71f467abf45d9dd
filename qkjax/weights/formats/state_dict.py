"""Reads the parameters of torch models: safetensors (one file or shards) and PyTorch files.

Safetensors need no torch. PyTorch's `.bin` and `.pth` are pickles: only torch's reader for weights
(`weights_only=True`) opens them, if torch is installed.
"""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.formats.json_object import read_json

INDEX = "model.safetensors.index.json"
FILES = ("model.safetensors", INDEX, "pytorch_model.bin")
PICKLED = (".bin", ".pt", ".pth", ".tar")  # suffixes of PyTorch files
# Replaces the configuration that Microsoft's code saves with its models, which is not used.
HARMLESS = [(OrderedDict, "yacs.config.CfgNode")]
READABLE = ("F64", "F32", "F16", "BF16")


def find(folder: Path) -> Path | None:
    """The file in a folder that holds the parameters, or the index of its shards; None if there is none."""
    named = next((folder / name for name in FILES if (folder / name).is_file()), None)
    others = sorted(folder.glob("*.safetensors"))
    return named or (others[0] if len(others) == 1 else None)


def is_torch_file(path: Path) -> bool:
    """Whether the content is a safetensors header, a pickle, or a zip with a pickle in it."""
    if path.name.endswith(".index.json"):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # the npz reader reports the problem
    return start[8:9] == b"{" or start[:2] in (b"\x80\x02", b"\x80\x04")


def open_state(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """One reader per parameter, by name; an array is read when its reader is called.

    Args:
      path: a safetensors file, the index of shards, or a PyTorch file.

    Raises:
      QkjaxError: damaged, a missing shard, or a PyTorch file if torch is not installed.
    """
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":
        return _open_safetensors(path)
    return _open_torch(path)


def _open_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    def reader(name: str, stored: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            if stored not in READABLE:
                raise QkjaxError(f"{path}: {name!r} is stored as {stored}, expected one of {', '.join(READABLE)}")
            # Opened for each array: closing the map frees the pages of the last one.
            with safe_open(path, "np") as file:
                return file.get_tensor(name)

        return read

    try:
        with safe_open(path, "np") as file:
            return {name: reader(name, file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise QkjaxError(f"{path} is damaged ({error}); download or copy it again") from error


def _open_shards(index: Path) -> dict[str, Callable[[], np.ndarray]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise QkjaxError(f"{index} has no 'weight_map' of parameters to shards; download or copy the model again")
    shards = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise QkjaxError(f"{index.parent}: shard {name!r} is missing; download or copy the model again")
        shards[name] = _open_safetensors(index.parent / name)
    for parameter, name in places.items():
        if parameter not in shards[name]:
            raise QkjaxError(
                f"{index.parent}: {parameter!r} is not in shard {name!r}: the shards belong to different models"
            )
    return {parameter: shards[name][parameter] for parameter, name in places.items()}


def _open_torch(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise QkjaxError(f"{path} is a PyTorch file, which only torch can read: pip install 'qkjax[torch]'") from error
    try:
        is_zip = zipfile.is_zipfile(path)  # files from before 2020 are not zip files, and cannot be memory-mapped
        with torch.serialization.safe_globals(HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # the unpickler raises exceptions of many kinds
        # The one line of torch's message that names the problem, not those on unpickling anyway.
        match = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not an allowed|\n|$)", str(error))
        reason = (match[1] if match else str(error).partition("\n")[0])[:200]
        raise QkjaxError(f"torch cannot read {path} with weights_only=True ({reason})") from error
    for inner in ("model", "state_dict"):
        state = state[inner] if isinstance(state, dict) and isinstance(state.get(inner), dict) else state
    if not isinstance(state, dict):
        raise QkjaxError(f"{path} holds {type(state).__name__}, expected a state dict")
    parts = {k: v for k, v in state.items() if isinstance(v, dict) and any(torch.is_tensor(t) for t in v.values())}
    tensors = state | {f"{part}/{name}": t for part, inner in parts.items() for name, t in inner.items()}
    tensors = {str(name): t for name, t in tensors.items() if torch.is_tensor(t)}
    return {name: (lambda name=name, t=t: _to_numpy(f"{path}: {name!r}", t)) for name, t in tensors.items()}


def _to_numpy(what: str, tensor) -> np.ndarray:
    import ml_dtypes
    import torch

    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if tensor.layout != torch.strided or tensor.dtype not in known:
        raise QkjaxError(f"{what} is {tensor.dtype}, {tensor.layout}; expected a dense tensor of 16 to 64 bit floats")
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
