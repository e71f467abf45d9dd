"""Places for results that are not free: one line before the work begins, and nothing of the user's is replaced."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

from conftest import DATA
from qkjax.cli.options import quoted
from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.runtime.folders import check_folder
from qkjax.runtime.lock import LOCK

MODEL = DATA / "a.npz"
SMALL = {"width": 16, "depth": 1, "heads": 1, "mlp-dim": 16, "steps": 3, "warmup": 0, "every": 3, "batch": 8}
TRAIN = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
COMMANDS = {
    "analyze": (MODEL,),
    "composition": (MODEL,),
    "compare": (MODEL, DATA / "c.npz"),
    "image": (MODEL, "chelsea"),
    "top-images": (MODEL,),
    "preference": (MODEL,),
    "objects": (MODEL,),
    "sinks": (MODEL,),
    "tokens": (MODEL,),
    "ablate": (MODEL, "--select", "all"),
    "report": (MODEL,),
}


def make(kind: str, path: Path) -> None:
    """Makes something that is neither a folder nor a regular file, or a file of the user."""
    if kind == "file":
        path.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    elif kind == "link to nothing":
        path.symlink_to(path.parent / "nothing")
    elif kind == "link to itself":
        path.symlink_to(path)


def refused(done, *parts: str) -> None:
    assert done.code == 2
    assert done.err.count("\n") == 1, done.err
    assert len(done.err) < 500
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize("kind", ["file", "pipe", "socket", "link to nothing", "link to itself"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_folder_is_something_else(name, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(kind, tmp_path / "out")
    refused(command(monkeypatch, capsys, name, *COMMANDS[name], "--out", tmp_path / "out"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out").is_dir()


@pytest.mark.parametrize("kind", ["file", "pipe", "link to nothing"])
@pytest.mark.parametrize("name", ["train", "sweep"])
def test_the_folder_of_a_run_is_something_else(name, kind, tmp_path, monkeypatch, capsys):
    make(kind, tmp_path / "out")
    refused(command(monkeypatch, capsys, name, tmp_path / "out", *["free"] * (name == "sweep"), *TRAIN), "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("analyze", "modes.nc"), ("analyze", "layers.csv"), ("image", "heads.csv"), ("top-images", "sheets.csv"),
        ("preference", "preference.nc"), ("ablate", "ablations.csv"), ("report", "index.html"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_a_file_of_the_result_is_something_else(name, place, kind, tmp_path, monkeypatch, capsys):
    make(kind, tmp_path / place)
    done = command(monkeypatch, capsys, name, *COMMANDS[name], "--out", tmp_path)
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("qkjax: error: ")]
    assert len(errors) == 1
    assert str(tmp_path / place) in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == [place]
    assert not (tmp_path / place).is_file()


@pytest.mark.parametrize(("name", "folder"), [("top-images", "sheets"), ("ablate", "done")])
def test_a_subfolder_is_a_file(name, folder, tmp_path, monkeypatch, capsys):
    make("file", tmp_path / folder)
    done = command(monkeypatch, capsys, name, *COMMANDS[name], "--out", tmp_path)
    assert done.code == 2
    assert f"{tmp_path / folder} is a file" in done.err
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("place", ["config.json", "metrics.jsonl", "model.npz", "checkpoints", "tensorboard"])
def test_a_run_replaces_no_file_that_no_run_wrote(place, tmp_path, monkeypatch, capsys):
    make("file", tmp_path / place)
    refused(
        command(monkeypatch, capsys, "train", tmp_path, *TRAIN), str(tmp_path), place, "not part of a run", "--fresh"
    )
    assert [path.name for path in tmp_path.iterdir()] == [place]
    assert (tmp_path / place).read_text() == "mine"


def test_a_process_ends_although_the_checkpoint_library_left_threads(tmp_path):
    """Orbax's threads wait for ten minutes after a checkpoint that could not be written."""
    script = (
        "import sys, threading, time\nfrom qkjax import cli\nfrom qkjax.errors import QkjaxError\n"
        "def fail(*_):\n threading.Thread(target=time.sleep, args=(500,)).start()\n raise QkjaxError('no space')\n"
        "cli._run = fail\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (2, "qkjax: error: no space\n")


def test_results_of_another_program_are_not_replaced(tmp_path, monkeypatch, capsys):
    xr.Dataset({"mine": ("x", np.arange(3))}).to_netcdf(tmp_path / "modes.nc", engine="h5netcdf")
    before = (tmp_path / "modes.nc").read_bytes()
    done = command(monkeypatch, capsys, "analyze", MODEL, "--out", tmp_path)
    assert done.code == 2
    assert "modes.nc is not a result of qkjax, and would be replaced" in done.err
    assert (tmp_path / "modes.nc").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["modes.nc"]


@pytest.mark.parametrize("kind", ["file", "pipe", "link to nothing"])
def test_a_file_with_the_name_of_the_lock_stays(kind, tmp_path, monkeypatch, capsys):
    make(kind, tmp_path / LOCK)
    done = command(monkeypatch, capsys, "analyze", MODEL, "--out", tmp_path)
    assert done.code == 2
    assert str(tmp_path / LOCK) in done.err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert kind != "file" or (tmp_path / LOCK).read_text() == "mine"


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to nothing"])
def test_a_file_is_written_only_over_a_file(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(kind, tmp_path / "x.npz")
    with pytest.raises(QkjaxError, match="not a regular file"), atomic_path(tmp_path / "x.npz") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_device_is_not_replaced(tmp_path):
    (tmp_path / "x.npz").symlink_to("/dev/null")
    with pytest.raises(QkjaxError, match="not a regular file"), atomic_path(tmp_path / "x.npz"):
        pass
    assert (tmp_path / "x.npz").is_symlink()


def test_a_folder_that_can_be_created_is_accepted(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "a" / "b", tmp_path / "link", tmp_path / "link" / "c", Path("relative")):
        check_folder(path)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("name", ["-dash", "new\nline", "a\udcff\udcfe", "it's", "back\\slash", "plain", "\u202edot"])
def test_a_printed_argument_can_be_typed(name):
    """The shell is the oracle."""
    written = subprocess.run(["bash", "-c", f"printf %s {quoted('x' + name)}"], capture_output=True, check=True)
    assert written.stdout == os.fsencode("x" + name)
    assert quoted(name).isprintable()


def test_a_model_whose_name_is_not_text(tmp_path, monkeypatch, capsys):
    """The name in the results has escape sequences, and the printed next command is the one to type."""
    model = tmp_path / "a\udcff\udcfe.npz"
    model.write_bytes(MODEL.read_bytes())
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "red.png")
    done = command(monkeypatch, capsys, "analyze", model, "--out", tmp_path / "modes")
    assert done.code == 0
    assert "/a\\xff\\xfe.npz'" in done.err.splitlines()[-1]
    with xr.open_dataset(tmp_path / "modes" / "modes.nc") as data:
        assert data.attrs["checkpoint"].endswith("a\\udcff\\udcfe.npz")
    scan = ("top-images", model, "--images", tmp_path / "images", "--select", "L0 H0 M0", "--out", tmp_path / "top")
    assert command(monkeypatch, capsys, *scan).code == 0
    assert command(monkeypatch, capsys, *scan).code == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("analyze", "-x.npz"), ("Unrecognized options: -x.npz", "see qkjax analyze --help")),
        (("export",), ("MODEL", "FILE.npz", "see qkjax export --help")),
        (("top-images", "x", "--top", "two"), ("--top", "'two'")),
        (("preference", "x", "--kind", "cats"), ("--kind", "'cats'", "patterns")),
        (("train", "x", "--steps", "1.5"), ("--steps", "'1.5'")),
    ],
)
def test_an_invalid_option_is_one_line(words, parts, monkeypatch, capsys):
    refused(command(monkeypatch, capsys, *words), "qkjax: error: ", *parts)


def test_an_invalid_option_on_a_terminal_without_special_characters():
    """tyro then draws the frame with hyphens."""
    words = [sys.executable, "-m", "qkjax", "top-images", "x", "--modes", "2"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=plain)
    assert done.stderr.startswith("qkjax: error: Unrecognized or misplaced options: --modes")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("side", ["5000", "0", "-32"])
def test_a_resolution_beyond_the_limit(side, tmp_path, monkeypatch, capsys):
    done = command(monkeypatch, capsys, "top-images", MODEL, "--resolution", "32", side, "--out", tmp_path / "out")
    assert done.code == 2
    assert "--resolution (32, " in done.err
    assert not (tmp_path / "out").exists()
