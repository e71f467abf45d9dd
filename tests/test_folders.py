"""Folders of results: one process at a time, `--fresh`, and what killed processes left."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from conftest import DATA
from qkjax.runtime.files import atomic_folder, atomic_path, discard, temporaries
from qkjax.runtime.lock import LOCK, exclusive

MODEL = DATA / "a.npz"


@pytest.fixture
def images(tmp_path):
    """Six small pictures."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def scan(images, out, *more):
    return ["top-images", MODEL, "--images", images, "--out", out, "--select", "L0 H0 M0", "--batch", "2", *more]


def test_second_process_in_a_folder_says_why_it_stops(images, tmp_path, monkeypatch, capsys):
    held, done = threading.Event(), threading.Event()

    def hold():
        with exclusive(tmp_path / "out"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    second = command(monkeypatch, capsys, *scan(images, tmp_path / "out"))
    done.set()
    thread.join()
    assert second.code == 2
    assert f"another process is using {tmp_path / 'out'}: wait until it ends, or choose another folder" in second.err
    assert command(monkeypatch, capsys, *scan(images, tmp_path / "out")).code == 0
    assert not (tmp_path / "out" / LOCK).exists()


def test_two_commands_at_once_end_right_or_say_why(images, tmp_path):
    words = [sys.executable, "-W", "ignore", "-m", "qkjax", *map(str, scan(images, tmp_path / "out"))]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate(timeout=200) for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes
    assert all("another process is using" in err for (_, err), code in zip(ends, codes, strict=True) if code)
    assert qkjax.load(MODEL).config.depth == xr.load_dataset(tmp_path / "out/top_images.nc").sizes["layer"]


def test_fresh_discards_a_result_of_other_settings(images, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, capsys, *scan(images, tmp_path / "out", "--top", "2")).code == 0
    refused = command(monkeypatch, capsys, *scan(images, tmp_path / "out", "--top", "3"))
    assert refused.code == 2
    assert "different settings (top): pass another folder as --out, or repeat" in " ".join(refused.err.split())
    assert "with --fresh" in refused.err
    assert command(monkeypatch, capsys, *scan(images, tmp_path / "out", "--top", "3", "--fresh")).code == 0
    assert xr.load_dataset(tmp_path / "out/top_images.nc").sizes["place"] == 3


def test_fresh_discards_damaged_files(images, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    for name in ("top_images.nc", "top_images.partial.npz"):
        (tmp_path / "out" / name).write_bytes(b"damaged")
    assert command(monkeypatch, capsys, *scan(images, tmp_path / "out")).code == 2
    assert command(monkeypatch, capsys, *scan(images, tmp_path / "out", "--fresh")).code == 0
    assert not (tmp_path / "out/top_images.partial.npz").exists()


def test_fresh_computes_ablations_again(images, tmp_path, monkeypatch, capsys):
    words = ["ablate", MODEL, "--select", "cosine>0", "--images", images, "--out", tmp_path / "out"]
    assert command(monkeypatch, capsys, *words).code == 0
    again = command(monkeypatch, capsys, *words)
    assert "ablations on" not in again.err
    stored = next((tmp_path / "out/done").glob("*.npz"))
    stored.write_bytes(b"damaged")  # one that cannot be read is computed again
    assert "ablations on" in command(monkeypatch, capsys, *words).err
    assert "ablations on" in command(monkeypatch, capsys, *words, "--fresh").err


def test_what_killed_processes_left_is_removed(images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    left = [".top_images-abcd1234.nc", ".top_images.partial-abcd1234.npz", ".chosen-abcd1234.png"]
    kept = [".top_images-abc.nc", ".other-abcd1234.nc", ".top_images-abcd1234.txt"]
    for name in (*left, *kept):
        (out / name).write_bytes(b"x")
    assert command(monkeypatch, capsys, *scan(images, out)).code == 0
    names = {path.name for path in out.iterdir()}
    assert not names & set(left)
    assert set(kept) <= names


def test_folder_that_a_killed_process_was_replacing(tmp_path):
    """Killed between the two renames: the old folder is in the temporary one."""
    left = tmp_path / ".page-abcd1234"
    (left / "before").mkdir(parents=True)
    (left / "before/index.html").write_text("ours")
    other = tmp_path / ".page-efgh5678"
    other.mkdir()
    (other / "notes.txt").write_text("somebody's")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "page", "index.html", "ours", ("index.html",)):
        raise KeyboardInterrupt
    assert (tmp_path / "page/index.html").read_text() == "ours"
    assert not left.exists()
    assert (other / "notes.txt").exists()
    assert temporaries([tmp_path / "page"]) == [other]


@pytest.mark.skipif(os.name != "posix", reason="needs names of bytes")
def test_names_that_are_not_text_go_through_a_command(images, tmp_path, monkeypatch, capsys):
    first = next(images.iterdir())
    os.rename(first, os.fsencode(images) + b"/\xff\x1b[31m.png")
    done = command(monkeypatch, capsys, *scan(images, tmp_path / "out"))
    assert done.code == 0, done.err
    assert not {"\x1b", "\udcff"} & set(done.out + done.err)
    names = xr.load_dataset(tmp_path / "out/top_images.nc").image.values.tolist()
    assert any(name.endswith("\\x1b[31m.png") for name in names)
    assert "\x1b" not in (tmp_path / "out/chosen.csv").read_text()


def test_temporary_files_of_living_processes_stay(tmp_path):
    """Any writer of a file removes what killed writers of the file left; no folder needs to be locked for this."""
    path, left = tmp_path / "x.npz", tmp_path / ".x-abcd1234.npz"
    left.write_bytes(b"left")
    with atomic_path(path) as first:
        assert not left.exists()
        with atomic_path(path) as second:
            second.write_bytes(b"second")
        discard(temporaries([path]))
        assert temporaries([path]) == [first]
        first.write_bytes(b"first")
    assert path.read_bytes() == b"first"
    assert [*tmp_path.iterdir()] == [path]
