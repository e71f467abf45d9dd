"""Arrays are read from files as they are at one time, in threads, and every number of them is checked."""

import json
import os
import threading
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import qkjax
from conftest import DATA, NEEDS
from qkjax.weights.families import read_all as reading
from qkjax.weights.families.read_all import check_finite, read_all
from qkjax.weights.formats.npz import NpzFile
from qkjax.weights.formats.safetensors_file import open_safetensors
from qkjax.weights.formats.state_dict import open_state

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.linspace(0, 1, 700_000),  # several blocks
    "c": np.array(7, np.float16),
    "d": np.arange(5).astype(ml_dtypes.bfloat16),
}


def save_npz(path):
    np.savez(path, a=ARRAYS["a"], b=ARRAYS["b"])


def save_torch(path):
    torch = pytest.importorskip("torch", reason=NEEDS)
    torch.save({name: torch.tensor(ARRAYS[name]) for name in ("a", "b")}, path)


def from_npz(path) -> dict[str, np.ndarray]:
    with NpzFile(path) as file:
        return {name: file.read(name) for name in file.keys()}  # noqa: SIM118


def from_state(path) -> dict[str, np.ndarray]:
    return {name: read() for name, read in open_state(path)[""].items()}


FORMATS = {
    "npz": (save_npz, from_npz),
    "safetensors": (lambda path: save_file(ARRAYS, path), from_state),
    "pt": (save_torch, from_state),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_do_not_change_with_their_file(kind, tmp_path):
    """Not even if the file is overwritten or emptied in place, which would end a process that had mapped it."""
    path, (save, read) = tmp_path / f"x.{kind}", FORMATS[kind]
    save(path)
    arrays = read(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(100)
    assert arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype
        assert array.shape == ARRAYS[name].shape
        assert array.flags.writeable


@pytest.mark.parametrize("change", ["truncated", "replaced", "written"])
def test_file_that_changes_while_it_is_read(change, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path)
    readers = open_safetensors(path)
    np.testing.assert_array_equal(readers["a"](), ARRAYS["a"])
    if change == "truncated":
        os.truncate(path, 200)
    elif change == "replaced":
        save_file(ARRAYS, tmp_path / "y")
        os.replace(tmp_path / "y", path)
    else:
        os.utime(path, ns=(0, 0))
    with pytest.raises(qkjax.QkjaxError, match="the file was changed while it was read"):
        readers["b"]()


def test_header_that_names_an_array_twice(tmp_path):
    """Whichever of the two a parser takes, what is read has the shape that was checked."""
    places = ([2], [0, 8]), ([1], [8, 12])
    entries = [{"dtype": "F32", "shape": shape, "data_offsets": offsets} for shape, offsets in places]
    header = ("{" + ",".join(f'"a":{json.dumps(entry)}' for entry in entries) + "}").encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(qkjax.QkjaxError, match="is damaged"):
        open_safetensors(tmp_path / "x.safetensors")["a"]()


def test_offsets_that_lie_outside_the_file(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    for data in (bytes(7), bytes(9)):
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
        with pytest.raises(qkjax.QkjaxError, match="is damaged"):
            open_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("at", ["first", "last", "header"])
def test_checksum_of_a_member_that_is_not_compressed(at, tmp_path):
    path = tmp_path / "x.npz"
    save_npz(path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (member,) = (info for info in archive.infolist() if info.filename == "b.npy")
    start = data.index(b"\x93NUMPY", member.header_offset)
    place = {"first": start + 128, "last": start + member.file_size - 1, "header": start + 100}[at]
    data[place] ^= 1
    path.write_bytes(data)
    with NpzFile(path) as file, pytest.raises(qkjax.QkjaxError, match="member 'b' is damaged"):
        file.read("b")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda x: x.__name__)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_number_is_checked(dtype, value, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 7)
    largest = float(ml_dtypes.finfo(dtype).max)
    array = np.full((4, 3, 5), largest).astype(dtype)
    array[::2] = -array[::2]
    for view in (array, array.T, array[:, ::2], array[:0], array.transpose(1, 0, 2), np.array(array[0, 0, 0])):
        assert check_finite("x", view) is view
    for place in np.ndindex(array.shape):
        broken = array.copy()
        broken[place] = value
        for view in (broken, broken.T, broken.transpose(1, 0, 2), broken[:, place[1] :: 2]):
            with pytest.raises(qkjax.QkjaxError, match="parameter 'x' has NaN or infinite values"):
                check_finite("x", view)


def test_arrays_are_read_in_threads_and_the_first_error_is_raised(monkeypatch):
    monkeypatch.setattr(reading, "cores", lambda: 4)
    together = threading.Barrier(4, timeout=30)

    def read(key: str) -> np.ndarray:
        together.wait()
        if key in "bc":
            raise qkjax.QkjaxError(key)
        return np.array([ord(key)])

    assert list(read_all(lambda key: np.array(int(key)), "3120")) == ["3", "1", "2", "0"]
    with pytest.raises(qkjax.QkjaxError, match=r"^b$"):
        read_all(read, "abcd")


def test_checkpoint_of_compressed_members(tmp_path):
    """They are unpacked by zipfile, to the same arrays."""
    plain = from_npz(DATA / "c.npz")
    np.savez_compressed(tmp_path / "c.npz", **plain)
    for name, array in from_npz(tmp_path / "c.npz").items():
        np.testing.assert_array_equal(array, plain[name])
