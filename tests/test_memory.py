"""The peak memory that docs/commands.md states for every command holds: for a small model and for a ViT-S/14."""

import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_scan import make_images

from conftest import DATA, DEFAULT
from qkjax.cli import ALIASES
from qkjax.weights import catalogue

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
SIZES = ("small", "ViT-S/14")
FEW = {
    "analyze": [], "composition": [], "compare": ["edited.npz"], "image": ["chelsea", "--layer", "0", "--head", "0"],
    "top-images": ["--images", "images", "--select", "L0 H0 M0"], "preference": ["--count", "8"],
    "objects": ["--count", "8"], "sinks": ["--images", "images"], "report": ["--images", "images", "--modes", "1"],
    "ablate": ["--images", "images", "--select", "modes=0 layers=0", "--controls", "1"],
    "export": ["out.npz", "--edit", "drop", "--select", "grouping=0.4 layers=0-3"],
}  # fmt: skip
"""Little work: how many images there are does not count. What earlier tests compiled is not compiled anew, which would
take minutes; so the most is what a first run uses, with an empty cache."""
STEPS = ["--steps", "4", "--warmup", "2", "--every", "4"]
TRAINED_SIZES = ("two layers", "six layers")
TRAINED = {
    "train": ["runs", "--constraint", "tied", *STEPS],
    "sweep": ["runs", "free", "tied", "--seeds", "1", *STEPS],
}
TINY = ["--width", "16", "--depth", "2", "--heads", "2", "--mlp-dim", "16"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="the units of a process's peak memory are Linux's")


def stated(command: str) -> list[float]:
    """Gigabytes, of the smaller case and of the larger one if there are two."""
    names = "|".join([command, *(alias for alias, name in ALIASES.items() if name == command)])
    section = re.search(rf"^## qkjax (?:{names})$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    line = re.search(r"^Peak memory: .*$", section, re.MULTILINE)[0]
    return [float(number) for number in re.findall(r"(\d+\.\d+) GB", line)]


LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Between the tests and the command: a process starts with the peak of the one that it is forked from."""


def peak(folder: Path, *arguments, **environment) -> float:
    """Gigabytes at the most, of a command in a process of its own."""
    # OpenBLAS's threads wait for each other in loops: beside other processes an edit took four times as long with two.
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "qkjax", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024 / 1e9  # Linux counts in KiB


def as_stated(command: str, used: float, limit: float) -> None:
    """No more than a fifth above, as it varies; and not so far below that the page says nothing."""
    print(f"{command}: {used:.3f} GB, stated {limit:.2f}")
    assert 0.4 * limit < used < 1.2 * limit, f"{command}: {used:.2f} GB, stated {limit:.2f}"


@pytest.mark.slow
@linux
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("command", FEW)
def test_peak_memory_of_what_takes_a_model(command, size, default, tmp_path):
    make_images(tmp_path / "images", 8)
    file = DATA / "a.npz" if size == "small" else catalogue.path_of(DEFAULT)
    shutil.copy(file, tmp_path / "edited.npz")  # to compare with; what is in it does not count
    model = file if size == "small" else DEFAULT
    as_stated(command, peak(tmp_path, command, model, *FEW[command]), stated(command)[SIZES.index(size)])


@pytest.mark.slow
@linux
@pytest.mark.parametrize("size", TRAINED_SIZES)
@pytest.mark.parametrize("command", TRAINED)
def test_peak_memory_of_training(command, size, tmp_path):
    arguments = TRAINED[command] + (TINY if size == "two layers" else [])
    as_stated(command, peak(tmp_path, command, *arguments), stated(command)[TRAINED_SIZES.index(size)])


@linux
def test_peak_memory_of_the_catalogue(tmp_path):
    as_stated("models", peak(tmp_path, "models"), stated("models")[0])


@linux
def test_peak_memory_of_fetch_does_not_grow_with_the_file(tmp_path):
    entry = next(e for e in catalogue.entries().values() if e.kind == "gs" and not e.sha256 and not e.bytes)
    file = tmp_path / entry.path
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", bytes(50_000_000))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        folder = str(tmp_path / "fetched")
        used = peak(tmp_path, "fetch", entry.name, QKJAX_GS_URL=url, QKJAX_CHECKPOINTS=folder, no_proxy="127.0.0.1")
        server.shutdown()
    as_stated("fetch", used, stated("fetch")[0])
