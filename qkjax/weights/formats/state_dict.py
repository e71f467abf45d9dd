"""Reads the parameters of torch models: safetensors (one file or shards) and PyTorch files.

Safetensors files are read without torch. PyTorch's `.bin` and `.pth` files are pickles, which qkjax opens only with
`torch.load(weights_only=True)`.
"""

import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.formats.file_names import FILES, PICKLED
from qkjax.weights.formats.json_object import read_json
from qkjax.weights.formats.safetensors_file import open_safetensors

# Configuration classes that Microsoft's and other training code saves with models. qkjax does not use them.
HARMLESS = [(OrderedDict, "yacs.config.CfgNode"), Namespace]
DEEPEST, LISTED = 3, 6
LARGEST_PICKLE = 64 << 20
"""Largest accepted pickle in a zip file, in bytes. This pickle contains no weights; that of a ViT-L has about 50,000
bytes."""
CHUNK = 1 << 20
SPARSEST = 20
"""Largest accepted ratio of a file's size to the space that the file takes on disk. File systems compress weights by
less."""
NOT_MODELS = re.compile(r"optim|sched|scaler|hyper|callbacks|loops|args|config")
"""Names of objects other than models that training code saves in the same file."""

Readers = dict[str, Callable[[], np.ndarray]]


def find(folder: Path) -> Path | None:
    """The file with the parameters in a folder, or the index of the shards; None if the folder contains neither."""
    named = next((folder / name for name in FILES if (folder / name).is_file()), None)
    others = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    return named or (others[0] if len(others) == 1 else None)


def no_model_message(folder: Path) -> str:
    """An error message for a folder without a model, which states what the folder contains and what was expected."""
    names = sorted(path.name for path in folder.iterdir())
    torch_files = [name for name in names if Path(name).suffix in PICKLED]
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in names[:LISTED]]
    listed = ", ".join(shown) + (", ..." if len(names) > LISTED else "") or "nothing"
    hint = f"; pass the path of a file, such as {folder / torch_files[0]}" if torch_files else ""
    return (
        f"{folder} contains {listed}; expected {', '.join(FILES)}, one *.safetensors, or a folder of big_vision with "
        f"'<parameter>/.zarray'{hint}"
    )


def is_torch_file(path: Path) -> bool:
    """Whether a file is a safetensors file, a pickle, or a zip file that contains a pickle."""
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


def open_state(path: Path) -> dict[str, Readers]:
    """Opens a file; returns, for each model by name ("" for a single model), functions that read its parameters.

    Args:
      path: path of a safetensors file, of the index of shards, or of a PyTorch file.

    Raises:
      QkjaxError: the file is damaged, a shard is missing, or torch, which PyTorch files need, is not installed.
    """
    if path.name.endswith(".index.json"):
        return {"": _open_shards(path)}
    members = _check_size(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":
        return {"": open_safetensors(path)}
    return _open_torch(path, members)


def _check_size(path: Path) -> set[str] | None:
    """Checks, before reading into memory, that the file's real size on disk agrees with its stated and unpacked size.

    Returns:
      The names of the members of a zip file; None for any other file.

    Raises:
      QkjaxError: most of the file is not on disk, its pickle is too large, or its members are larger than the file.
    """
    stat = path.stat()
    on_disk = getattr(stat, "st_blocks", stat.st_size) * 512  # st_blocks is in units of 512 bytes
    if stat.st_size > LARGEST_PICKLE and on_disk < stat.st_size / SPARSEST:
        raise QkjaxError(f"{path} has {stat.st_size} bytes, but only {on_disk} are on disk; download or copy it again")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    pickle, unpacked = max((n for name, n in sizes.items() if name.endswith(".pkl")), default=0), sum(sizes.values())
    if pickle > LARGEST_PICKLE or unpacked > 2 * stat.st_size + LARGEST_PICKLE:
        raise QkjaxError(
            f"{path} has {stat.st_size} bytes, but unpacks to {unpacked}, {pickle} of them in its pickle: expected at "
            f"most {LARGEST_PICKLE} in the pickle, and no compression, as in files that PyTorch saves; save the model "
            "again"
        )
    return set(sizes)


def _open_shards(index: Path) -> Readers:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise QkjaxError(f"{index} has no 'weight_map' of parameters to shards; download or copy the model again")
    shards = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise QkjaxError(f"{index.parent}: shard {name!r} is missing; download or copy the model again")
        shards[name] = _open_shard(index.parent / name)
    for parameter, name in places.items():
        if parameter not in shards[name]:
            raise QkjaxError(
                f"{index.parent}: shard {name!r} lacks {parameter!r}, so the shards belong to different models; "
                "download the model again"
            )
    return {parameter: shards[name][parameter] for parameter, name in places.items()}


def _open_shard(path: Path) -> Readers:
    """Opens a shard, which contains one part of one model; returns functions that read its parameters."""
    models = open_state(path)
    if list(models) != [""]:
        raise QkjaxError(f"{path}: the shard contains nested objects ({', '.join(models)}), expected only parameters")
    return models[""]


def _open_torch(path: Path, members: set[str] | None) -> dict[str, Readers]:
    try:
        import torch
    except ImportError as error:
        raise QkjaxError(f"{path} is a PyTorch file, which only torch can read: pip install 'qkjax[torch]'") from error
    if any(name.endswith("/constants.pkl") for name in members or ()):
        raise QkjaxError(f"{path} is a TorchScript archive: save torch.jit.load(path).state_dict() with torch.save")
    # Files from before 2020 are not zip files and cannot be memory-mapped.
    mapped = members is not None and _check_members(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the unpickler raises many kinds of exceptions
        # Keep only the line of torch's message that states the problem, without the advice on unpickling.
        match = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not an allowed|\n|$)", str(error))
        reason = (match[1] if match else str(error).partition("\n")[0])[:200]
        raise QkjaxError(f"torch cannot read {path} with weights_only=True ({reason})") from error
    if not isinstance(state, dict):
        raise QkjaxError(f"{path} contains a {type(state).__name__}, expected a state dict")
    models = _models(state)
    return {
        # Copied, since a mapped array would change with the file, and end the process if the file were truncated.
        name: {key: (lambda key=key, t=t: np.array(to_numpy(f"{path}: {key!r}", t))) for key, t in tensors.items()}
        for name, tensors in models.items()
    }


def _check_members(path: Path) -> bool:
    """Compares each member of a zip file with its checksum, which torch does not do; a checksum of 0 is not compared.

    Returns:
      Whether no member is compressed. If torch maps a compressed member, it mistakes the compressed bytes for weights.

    Raises:
      QkjaxError: a member is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    while info.CRC and member.read(CHUNK):
                        pass
            return all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    except Exception as error:  # zipfile raises errors of many types
        raise QkjaxError(f"{path} is damaged ({str(error)[:200]}); download or copy it again") from error


def _models(state: dict, name: str = "", depth: int = 0) -> dict[str, dict]:
    """Finds the state dicts in a nested dict; returns a dict from their key paths ("" for the top level) to them."""
    import torch

    tensors = {str(key): value for key, value in state.items() if torch.is_tensor(value)}
    models = {name: tensors} if tensors else {}
    for key, inner in state.items():
        if isinstance(inner, dict) and isinstance(key, str) and depth < DEEPEST and not NOT_MODELS.search(key.lower()):
            models |= _models(inner, f"{name}/{key}".strip("/"), depth + 1)
    return models


def to_numpy(what: str, tensor) -> np.ndarray:
    """Converts a torch tensor on the host to an array of the same dtype, which may share the tensor's memory.

    Args:
      what: how error messages refer to the tensor.

    Raises:
      QkjaxError: the tensor is not a dense tensor of floating-point numbers.
    """
    import ml_dtypes
    import torch

    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if tensor.is_nested or tensor.is_meta:
        raise QkjaxError(
            f"{what} is a {'nested' if tensor.is_nested else 'meta'} tensor, expected a dense tensor with data"
        )
    if tensor.layout != torch.strided or tensor.dtype not in known:
        raise QkjaxError(f"{what} is {tensor.dtype}, {tensor.layout}; expected a dense tensor of 16 to 64 bit floats")
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
