"""Every analysis as a Python function: an edited checkpoint in memory gives what commands give through files."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command

import qkjax
from conftest import DATA
from qkjax.images.generated import patterns
from qkjax.images.segmented import mosaics

COUNT, BATCH = 6, 4
OPTIONS = qkjax.PassOptions(batch=BATCH)


@pytest.fixture(scope="module")
def original() -> qkjax.Checkpoint:
    return qkjax.load(DATA / "a.npz")


@pytest.fixture(scope="module")
def edited(original) -> qkjax.Checkpoint:
    return qkjax.edit(original, "flip", "modes=0-3 layers=0-2", key_bias=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A few small photographs in a folder."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    photographs = qkjax.images.photographs()
    for index in range(COUNT):
        photograph = Image.fromarray(np.asarray(photographs.read(index)))
        photograph.thumbnail((120, 120))
        photograph.save(folder / f"{index}.png")
    return folder


def in_memory(original, edited, pictures: Path) -> dict[str, xr.Dataset]:
    """The result of every analysis of a checkpoint in memory."""
    images = qkjax.images.open_images(pictures)
    scenes, mosaic = patterns(COUNT, 0), mosaics(COUNT, 0)
    maps = qkjax.query_key_maps(edited, "chelsea")
    assert all(isinstance(array, np.ndarray) for array in maps)
    return {
        "analyze": qkjax.analyze(edited, fold_scale=True),
        "compare": qkjax.compare(original, edited),
        "image": qkjax.attribute_logits(edited, "chelsea"),
        "top_images": qkjax.top_images(edited, images, top=3, scores=("product", "key_max"), options=OPTIONS),
        "preference": qkjax.attention_preference(edited, scenes, options=OPTIONS),
        "objects": qkjax.same_object(edited, mosaic, top=3, options=OPTIONS),
        "tokens": qkjax.token_statistics(edited, images, options=OPTIONS),
        "ablate": qkjax.ablate(edited, [{"edit": "drop", "select": "cosine>0", "controls": 1}], images,
                               queries=4, options=OPTIONS),
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(original, edited, pictures) -> dict[str, xr.Dataset]:
    return in_memory(original, edited, pictures)


def through_files(model: Path, pictures: Path) -> dict[str, tuple]:
    """Words of the command of every analysis, and the file in which its result is."""
    passes = ("--batch", BATCH)
    generated = ("--count", COUNT, *passes)
    ablation = ("--select", "cosine>0", "--controls", 1, "--queries", 4)
    return {
        "analyze": (("analyze", model, "--fold-scale"), "modes.nc"),
        "compare": (("compare", DATA / "a.npz", model), "edited-against-a/difference.nc"),
        "image": (("image", model, "chelsea", "--layer", 0, "--head", 0), "contributions.nc"),
        "top_images": (
            ("top-images", model, "--images", pictures, "--top", 3, "--score", "product", "key_max",
             "--layer", 0, "--head", 0, *passes),
            "top_images.nc",
        ),
        "preference": (("preference", model, *generated), "preference.nc"),
        "objects": (("objects", model, "--top", 3, *generated), "objects.nc"),
        "tokens": (("tokens", model, "--images", pictures, *passes), "tokens.nc"),
        "ablate": (("ablate", model, "--images", pictures, *ablation, *passes), "ablations.nc"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("analyze", "save"), ("compare", "export"), ("image", "save"), ("top_images", "export"),
        ("preference", "command"), ("objects", "save"), ("tokens", "export"), ("ablate", "export"),
    ],
)  # fmt: skip
def test_memory_and_files_agree_to_the_bit(name, how, edited, results, pictures, tmp_path, monkeypatch, capsys):
    model = tmp_path / "edited.npz"
    write(edited, model, how, monkeypatch, capsys)
    words, file = through_files(model, pictures)[name]
    done = command(monkeypatch, capsys, *words, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert_equal_arrays(xr.load_dataset(tmp_path / "out" / file), results[name])


def write(edited: qkjax.Checkpoint, model: Path, how: str, monkeypatch, capsys) -> None:
    """Writes the edited checkpoint; the command edits the original one itself."""
    if how == "save":
        qkjax.save(edited, model)
    elif how == "export":
        qkjax.export(edited, model)
    else:
        words = ("--edit", "flip", "--select", "modes=0-3 layers=0-2", "--no-key-bias")
        assert command(monkeypatch, capsys, "export", DATA / "a.npz", model, *words).code == 0


def test_files_hold_the_same_bits_however_they_are_written(edited, tmp_path, monkeypatch, capsys):
    for how in ("save", "export", "command"):
        write(edited, tmp_path / f"{how}.npz", how, monkeypatch, capsys)
        loaded = qkjax.load(tmp_path / f"{how}.npz")
        for first, second in zip(qkjax.query_key(loaded.params), qkjax.query_key(edited.params), strict=True):
            np.testing.assert_array_equal(first, second)


def assert_equal_arrays(first: xr.Dataset, second: xr.Dataset) -> None:
    assert set(first.variables) == set(second.variables)
    for variable in second.variables:
        np.testing.assert_array_equal(first[variable].values, second[variable].values, err_msg=variable)
        if second[variable].dtype != object:
            assert first[variable].dtype == second[variable].dtype, variable
    for attribute in ("summary",):
        assert first.attrs[attribute].replace("edited", "a") == second.attrs[attribute].replace("edited", "a")


def test_maps_through_a_file_are_the_same(edited, tmp_path):
    qkjax.export(edited, tmp_path / "edited.npz")
    ours, theirs = (qkjax.query_key_maps(c, "chelsea") for c in (edited, qkjax.load(tmp_path / "edited.npz")))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    shares = qkjax.attribute_logits(edited, "chelsea")
    assert ours.query.shape[-1] == shares.sizes["mode"]


def test_the_edit_changes_the_results(original, results):
    """Otherwise the comparison through files would compare nothing."""
    assert not np.array_equal(qkjax.analyze(original, fold_scale=True).cosine, results["analyze"].cosine)
    assert float(results["compare"].similarity.min()) < 0.99


def test_every_dataset_explains_itself(results):
    for name, dataset in results.items():
        assert len(dataset.attrs["summary"].split()) >= 8, name
        for variable in dataset.variables:
            attributes = dataset[variable].attrs
            assert attributes["long_name"], (name, variable)
            assert "units" in attributes, (name, variable)
            assert len(attributes["description"].split()) >= 2, (name, variable)
        for dimension in dataset.dims:
            assert dimension in dataset.coords, (name, dimension)


def test_functions_print_nothing_and_write_nothing(pictures, tmp_path):
    """In a process of its own, whose working directory stays empty."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import qkjax, test_api; "
        "original = qkjax.load(test_api.DATA / 'a.npz'); "
        "edited = qkjax.edit(original, 'flip', 'modes=0-3 layers=0-2', key_bias=False); "
        "test_api.in_memory(original, edited, Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(pictures)],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
        env=os.environ | {"TMPDIR": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_partial_files_stay_until_the_caller_removes_them(edited, tmp_path):
    partial = tmp_path / "partial.npz"
    whole = qkjax.attention_preference(edited, patterns(COUNT, 0), options=OPTIONS, partial=partial)
    assert [path.name for path in tmp_path.iterdir()] == ["partial.npz"]
    again = qkjax.attention_preference(edited, patterns(COUNT, 0), options=OPTIONS, partial=partial)
    xr.testing.assert_identical(again, whole)


@pytest.mark.parametrize("name", sorted(qkjax._RENAMED))
def test_earlier_names_warn_and_state_the_new_one(name):
    module, new = qkjax._RENAMED[name]
    with pytest.warns(DeprecationWarning, match=rf"qkjax\.{name} is now qkjax\.{module}\.{new}"):
        value = getattr(qkjax, name)
    assert callable(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if new in qkjax.__all__:
            assert getattr(qkjax, new) is value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: qkjax.same_object(c, mosaics(2, 0), top=0), "top=0: expected a whole number of at least 1"),
        (lambda c: qkjax.ablate(c, [{"edit": "drop"}], queries=0), "queries=0: expected a whole number of at least 1"),
        (
            lambda c: qkjax.attention_preference(c, patterns(2, 0), options=qkjax.PassOptions(batch=0)),
            "batch=0: expected a whole number of at least 1",
        ),
        (lambda c: qkjax.analyze(c, center=True), "center=True needs fold_scale=True"),
    ],
)
def test_errors_speak_python(original, call, message):
    with pytest.raises(qkjax.QkjaxError) as error:
        call(original)
    assert str(error.value).startswith(message)
    assert "--" not in str(error.value)


def test_settings_are_json(results):
    for name in ("image", "top_images", "preference", "objects", "tokens", "ablate"):
        assert isinstance(json.loads(results[name].attrs["settings"]), dict)


ANOTHER_TYPE = """
import qkjax
checkpoint = qkjax.load({model!r})
for name in ("top_images", "same_object", "attention_preference", "token_statistics", "attention_sinks", "ablate"):
    more = ([{{"edit": "drop"}}],) if name == "ablate" else ()
    for arguments in (("a.npz", *more), (checkpoint, *more, "photographs")):
        try:
            getattr(qkjax, name)(*arguments, partial="progress")
        except qkjax.QkjaxError as error:
            print(error)
"""


def test_arguments_of_another_type(tmp_path):
    """Paths in place of a checkpoint or of images are natural mistakes; a path as text for progress is none.

    The tests check the types of arguments, so this needs a process without these checks.
    """
    script = ANOTHER_TYPE.format(model=str(DATA / "a.npz"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    checkpoint = "checkpoint is a str: expected a checkpoint, as qkjax.load returns"
    images = "images is a str: expected an image set, as qkjax.images.open_images returns"
    assert done.stdout.splitlines() == [checkpoint, images] * 6
