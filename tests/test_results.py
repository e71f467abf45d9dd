"""What is read back is checked: results, progress, finished ablations; and texts from outside are made visible."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import qkjax
from qkjax.analyses.outcome import Description, outcome
from qkjax.passes.partial_file import read_partial, write_partial
from qkjax.results.rows import write_csv
from qkjax.results.store import digest, read_earlier, read_result, texts, write_dataset
from qkjax.runtime.visible import visible

SETTINGS = {"model": "m", "top": "3", "parameters": "abc"}


def result() -> xr.Dataset:
    rng = np.random.default_rng(0)
    variables = {
        "value": (("layer", "place"), rng.standard_normal((2, 3)).astype(np.float32)),
        "image_index": (("layer", "place"), np.arange(6).reshape(2, 3)),
        "degenerate": (("layer",), np.array([True, False])),
        "unreadable": (("broken",), texts(["a.png"])),
    }
    return xr.Dataset(variables, {"image": texts(["x", "y"])}, {"settings": json.dumps(SETTINGS), "summary": "words"})


def test_result_and_its_checksum(tmp_path):
    """Through netCDF, which has other types for texts and for truth values."""
    write_dataset(result(), tmp_path / "r.nc")
    read = read_result(tmp_path / "r.nc")
    xr.testing.assert_identical(read.drop_attrs(), result().drop_attrs())
    assert read.attrs["digest"] == digest(result()) == digest(read)


def with_settings(dataset: xr.Dataset, text: str) -> xr.Dataset:
    return dataset.assign_attrs(settings=text)


CHANGES = {
    "a number": lambda d: d.assign(value=d.value + 1e-6),
    "NaN": lambda d: d.assign(value=d.value * np.nan),
    "an index": lambda d: d.assign(image_index=d.image_index * 0 - 5),
    "a truth value": lambda d: d.assign(degenerate=~d.degenerate),
    "a name": lambda d: d.assign(unreadable=("broken", texts(["b.png"]))),
    "a dtype": lambda d: d.assign(image_index=d.image_index.astype(float)),
    "fewer layers": lambda d: d.isel(layer=slice(1)),
    "no value": lambda d: d.drop_vars("value"),
    "another variable": lambda d: d.assign(more=1),
    "settings": lambda d: with_settings(d, json.dumps({**SETTINGS, "top": "4"})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_result_is_refused(change, tmp_path):
    write_dataset(result(), tmp_path / "r.nc")
    CHANGES[change](read_result(tmp_path / "r.nc")).to_netcdf(tmp_path / "changed.nc", engine="h5netcdf")
    with pytest.raises(qkjax.QkjaxError, match=r"changed.nc \(its content differs from its checksum\); remove"):
        read_earlier(tmp_path / "changed.nc", SETTINGS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of h5netcdf, on damaged files
def test_flipped_bits(tmp_path):
    """Anywhere in the file: the same result, or one line."""
    write_dataset(result(), tmp_path / "r.nc")
    data, rng = (tmp_path / "r.nc").read_bytes(), np.random.default_rng(1)
    refused = 0
    for at in rng.integers(len(data), size=60):
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.integers(8)
        (tmp_path / "f.nc").write_bytes(flipped)
        try:
            assert digest(read_result(tmp_path / "f.nc")) == digest(result())
        except qkjax.QkjaxError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 500
    assert refused > 5


@pytest.mark.parametrize("text", ["[]", "null", "5", "{", '{"top": "x"}', '{"top": null}'])
def test_result_without_a_checksum_that_states_no_settings(text, tmp_path):
    """As a file of version 0.1 may be damaged."""
    with_settings(result(), text).to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    with pytest.raises(qkjax.QkjaxError, match=r"r.nc .*(does not state its settings|has other settings)"):
        read_earlier(tmp_path / "r.nc", SETTINGS, at_least=("top",))


def test_earlier_result_of_another_kind(tmp_path):
    result().to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    describe = lambda dataset: Description(str(dataset["nothing"].values), [], {}, {})
    with pytest.raises(qkjax.QkjaxError, match="is not a result of this analysis"):
        outcome(tmp_path, "r", SETTINGS, lambda partial: result(), describe)


def test_changed_progress_is_refused(tmp_path):
    path, settings = tmp_path / "x.partial.npz", {"a": "1"}
    arrays = {"done": np.array(2), "state0": np.arange(4.0), "names": np.array(["x", "yy"])}
    write_partial(path, settings, arrays, ())
    read, _ = read_partial(path, settings)
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    with np.load(path) as file:
        stored = dict(file)
    changes = {
        "state0": np.arange(4.0) + 1, "done": np.array(-3), "names": np.array(["x", "zz"]),
        "settings": np.array("[]"), "layout": np.array("null"), "unreadable": np.array("3"),
    }  # fmt: skip
    for name, value in changes.items():
        np.savez(path, **{**stored, name: value})
        with pytest.raises(qkjax.QkjaxError, match=r"x.partial.npz .*; remove .* to start again"):
            read_partial(path, settings)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(qkjax.QkjaxError, match="is not a file"):
        read_partial(tmp_path / "x", {})
    with pytest.raises(qkjax.QkjaxError, match="is not a file"):
        read_earlier(tmp_path / "x", {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 像", "plain é 像"), ("\x1b[31mred", "\\x1b[31mred"), ("a\nb\tc", "a\\nb\\tc"),
        ("\x07\x7f\x9b", "\\x07\\x7f\\x9b"),
        ("\u202egpj.exe", "\\u202egpj.exe"), ("zero\u200bwidth", "zero\\u200bwidth"), ("\udcff", "\\udcff"),
    ],
)  # fmt: skip
def test_hidden_characters(text, shown):
    assert visible(text) == shown
    assert texts([text])[0] == shown


def test_cells_that_a_spreadsheet_would_run(tmp_path):
    names = ["=1+1", "+x", "-x", "@x", "plain", "\x1b[31m", "\udcff"]
    write_csv([{"image": name, "score": -1.5} for name in names], tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["'=1+1", "'+x", "'-x", "'@x", "plain", "\\x1b[31m", "\\udcff"]
    assert {row["score"] for row in rows} == {"-1.5"}


@pytest.mark.parametrize("name", ["\x1b[31mred.npz", "\x1b]0;title\x07.npz", "\u202egpj.npz"])
def test_names_of_files_do_not_control_the_terminal(name, tmp_path):
    (tmp_path / name).write_bytes(b"bad")
    command = [sys.executable, "-m", "qkjax", "analyze", name]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not set("\x1b\x07\u202e") & set(done.stderr)
    assert visible(name) in done.stderr


@pytest.mark.parametrize("name", ["..npz", "...npz"])
def test_model_whose_name_is_only_dots(name, default, tmp_path):
    """Its results would be written to the folder above."""
    qkjax.save(default, tmp_path / "m.npz")
    (tmp_path / "m.npz").rename(tmp_path / name)
    with pytest.raises(qkjax.QkjaxError, match="consists only of dots"):
        qkjax.load(tmp_path / name)
