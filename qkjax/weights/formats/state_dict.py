"""Reading torch models' parameters: safetensors (one file or shards), and PyTorch's own files.

Safetensors need no torch. PyTorch's `.bin` and `.pth` are pickles: torch's own reader of weights
alone (`weights_only=True`) is the one thing that may open them, when torch is installed.
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
PICKLED = (".bin", ".pt", ".pth", ".tar")  # how the names of PyTorch's own files end
# Stands in for the configuration that Microsoft's code saves with its models, and which is not looked at.
HARMLESS = [(OrderedDict, "yacs.config.CfgNode")]
READABLE = ("F64", "F32", "F16", "BF16")


def find(folder: Path) -> Path | None:
    """The file of a model's folder that holds its parameters, or the index of its shards."""
    named = next((folder / name for name in FILES if (folder / name).is_file()), None)
    others = sorted(folder.glob("*.safetensors"))
    return named or (others[0] if len(others) == 1 else None)


def is_torch_file(path: Path) -> bool:
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


def open_state(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """A reader for each parameter by its name; arrays are read when their reader is called.

    Args:
      path: a safetensors file, the index of shards, or a PyTorch file.

    Raises:
      QkjaxError: damaged, a shard missing, or a PyTorch file without torch.
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
                raise QkjaxError(f"{path}: {name!r} is stored as {stored}, readable are {', '.join(READABLE)}")
            # Opened anew for each array: the pages of the last one leave the memory with its map.
            with safe_open(path, "np") as file:
                return file.get_tensor(name)

        return read

    try:
        with safe_open(path, "np") as file:
            return {name: reader(name, file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise QkjaxError(f"{path} is damaged ({error}); fetch or copy it again") from error


def _open_shards(index: Path) -> dict[str, Callable[[], np.ndarray]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise QkjaxError(f"{index} has no 'weight_map' from parameters to shards")
    shards = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise QkjaxError(f"{index.parent}: shard {name!r} is missing; fetch or copy the model again")
        shards[name] = _open_safetensors(index.parent / name)
    for parameter, name in places.items():
        if parameter not in shards[name]:
            raise QkjaxError(f"{index.parent}: {parameter!r} is not in shard {name!r}: shards of different models")
    return {parameter: shards[name][parameter] for parameter, name in places.items()}


def _open_torch(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise QkjaxError(f"{path} is a PyTorch file, which only torch can read: pip install 'qkjax[torch]'") from error
    try:
        is_zip = zipfile.is_zipfile(path)  # files of before 2020 are none, and cannot be mapped
        with torch.serialization.safe_globals(HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises whatever its unpickler meets
        # Of torch's many lines the one that says what, not those on how to unpickle it all the same.
        said = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not an allowed|\n|$)", str(error))
        reason = (said[1] if said else str(error).partition("\n")[0])[:200]
        raise QkjaxError(f"torch cannot read {path} as weights alone ({reason})") from error
    for inner in ("model", "state_dict"):
        state = state[inner] if isinstance(state, dict) and isinstance(state.get(inner), dict) else state
    if not isinstance(state, dict):
        raise QkjaxError(f"{path} holds {type(state).__name__}, wanted a state dict")
    parts = {k: v for k, v in state.items() if isinstance(v, dict) and any(torch.is_tensor(t) for t in v.values())}
    tensors = state | {f"{part}/{name}": t for part, inner in parts.items() for name, t in inner.items()}
    tensors = {str(name): t for name, t in tensors.items() if torch.is_tensor(t)}
    return {name: (lambda name=name, t=t: _to_numpy(f"{path}: {name!r}", t)) for name, t in tensors.items()}


def _to_numpy(what: str, tensor) -> np.ndarray:
    import ml_dtypes
    import torch

    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if tensor.layout != torch.strided or tensor.dtype not in known:
        raise QkjaxError(f"{what} is {tensor.dtype}, {tensor.layout}; wanted a dense tensor of 16 to 64 bit floats")
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
