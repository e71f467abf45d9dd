"""Checkpoints of PyTorch and tensorstore; see `models`."""

import json
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from . import arrays, files, json_values
from .containers import ZIP
from .files import INDEX
from .kind import Kind, change, pick
from .models import check, load, make
from .vit import CONFIG, big_vision_arrays, from_big_vision, hub_arrays

ODD = ("sparse", "nested", "meta", "quantised", "complex", "expanded", "negative", "parameter", "buffer", "requires",
       "list", "text", "none", "number", "dict", "array")  # fmt: skip
LAYOUTS = ("plain", "legacy", "nested", "with optimizer", "two models", "list", "tensor", "module", "deep")
TORCH = st.one_of(
    change("odd tensor", INDEX, st.sampled_from(ODD)),
    change("layout", st.sampled_from(LAYOUTS)),
    ZIP,
)


def write_torch(root: Path, given: arrays.Arrays, changes: list) -> None:
    """A file of `torch.save` next to a config.json, with changes of its objects."""
    import torch

    state = {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in given.items()}
    layout = "plain"
    for what, *arguments in changes:
        if what == "odd tensor":
            name = pick(arguments[0], sorted(state))
            state[name] = _odd(state[name], arguments[1])
        elif what == "layout":
            layout = arguments[0]
    other = {name: tensor * 2 for name, tensor in state.items()} if layout == "two models" else {}
    content = {
        "nested": {"state_dict": state, "epoch": 3},
        "with optimizer": {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}},
        "two models": {"student": state, "teacher": other},
        "list": list(state.values()),
        "tensor": next(iter(state.values())),
        "module": torch.nn.Linear(2, 2),
        "deep": {"a": {"b": {"c": {"d": {"e": state}}}}},
    }.get(layout, state)
    (root / "m").mkdir()
    (root / "m/config.json").write_text(json.dumps(CONFIG))
    torch.save(content, root / "m/pytorch_model.bin", _use_new_zipfile_serialization=layout != "legacy")


def _odd(tensor, how: str):
    import torch

    return {
        "sparse": tensor.to_sparse,
        "nested": lambda: torch.nested.nested_tensor([tensor.reshape(-1), tensor.reshape(-1)[:1]]),
        "meta": lambda: tensor.to("meta"),
        "quantised": lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        "complex": lambda: tensor.to(torch.complex64),
        "expanded": lambda: tensor.reshape(-1)[0].expand(tensor.shape),
        "negative": lambda: torch.flip(tensor, [0]),
        "parameter": lambda: torch.nn.Parameter(tensor),
        "buffer": lambda: torch.nn.Buffer(tensor),
        "requires": lambda: tensor.clone().requires_grad_(),
        "list": tensor.tolist,
        "text": lambda: "x",
        "none": lambda: None,
        "number": lambda: 3,
        "dict": lambda: {"x": tensor},
        "array": tensor.numpy,
    }[how]()


def make_torch(root: Path, changes: list) -> Path:
    """Writes the PyTorch file with its changes."""
    rest = [given for given in changes if given[0] not in ("odd tensor", "layout")]
    return make(partial(write_torch, changes=changes), hub_arrays(), "m", root, rest)


def read_torch(path: Path) -> dict:
    """The arrays of a PyTorch file, by torch alone."""
    import torch

    file = path / "pytorch_model.bin"
    try:
        state = torch.load(file, weights_only=True)
    except RuntimeError:  # for odd headers, which matter less if the file is mapped into memory
        state = torch.load(file, weights_only=True, mmap=True)
    for _ in range(4):
        inner = [x for name, x in state.items() if isinstance(x, dict) and name != "optimizer"]
        state = inner[0] if inner and not any(torch.is_tensor(x) for x in state.values()) else state
    return {name: x.detach().double().numpy() for name, x in state.items() if torch.is_tensor(x)}


ZLIB = {"id": "zlib", "level": 1}


def write_zarr(root: Path, given: arrays.Arrays) -> None:
    """big_vision's folder of tensorstore, in chunks."""
    import tensorstore

    for name, value in given.items():
        store = {"driver": "file", "path": str(root / "m" / name.replace("/", "~"))}
        chunks = [max(1, n // 2) if n % 2 == 0 else n for n in value.shape]
        metadata = {"shape": value.shape, "chunks": chunks, "dtype": value.dtype.str, "compressor": ZLIB}
        spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(value).result()


def read_zarr(path: Path) -> dict:
    """The arrays of a folder of zarr arrays, by numpy and zlib alone."""
    stored = {}
    for file in path.glob("*/.zarray"):
        metadata = json.loads(file.read_text())
        whole = np.full(metadata["shape"], np.nan, metadata["dtype"])
        chunks, shape = metadata["chunks"], metadata["shape"]
        between = metadata.get("dimension_separator", ".")
        for index in np.ndindex(*[-(-n // c) for n, c in zip(shape, chunks, strict=True)]):
            data = _unpacked((file.parent / (between.join(map(str, index)) or "0")).read_bytes(), metadata)
            part = np.frombuffer(data, metadata["dtype"]).reshape(chunks, order=metadata["order"])
            where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
            whole[where] = part[tuple(slice(n) for n in whole[where].shape)]
        stored[file.parent.name.replace("~", "/")] = whole
    return from_big_vision(stored)


def _unpacked(data: bytes, metadata: dict) -> bytes:
    if metadata["compressor"] is None:
        return data
    assert metadata["compressor"]["id"] == "zlib"
    return zlib.decompressobj().decompress(data)  # as tensorstore, without the checksum if it was cut off


def make_zarr(root: Path, changes: list) -> Path:
    """Writes the folder of tensorstore with its changes."""
    write_zarr(root, arrays.changed(big_vision_arrays(), changes))
    files.apply_all(root, changes)
    for what, *arguments in changes:
        if what.startswith("json"):
            json_values.apply(root, what, *arguments, suffix=".zarray")
    return root / "m"


KINDS = {
    "torch": Kind(
        make_torch,
        st.one_of(arrays.CHANGES, files.CHANGES, TORCH, json_values.CHANGES),
        load,
        partial(check, read_torch),
    ),
    "tensorstore": Kind(
        make_zarr, st.one_of(arrays.CHANGES, files.CHANGES, json_values.CHANGES), load, partial(check, read_zarr)
    ),
}
