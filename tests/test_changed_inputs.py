"""A result belongs to its inputs: a changed input of any kind is one line that names it, and --fresh begins again."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from conftest import DATA
from qkjax.analyses.ablate.readout import Labels
from qkjax.images.sources import open_images
from qkjax.weights.checkpoint import write_checkpoint

RESULTS = {
    "top-images": "top_images.nc",
    "objects": "objects.nc",
    "ablate": "ablations.nc",
    "preference": "preference.nc",
    "report": "results/model/top_images/top_images.nc",
}
OPTIONS = {
    "top-images": ("--images", "data/images", "--out", "out", "--layer", "0", "--head", "0", "--sheet-modes", "1"),
    "objects": ("--masks", "data", "--out", "out"),
    "ablate": ("--images", "data/images", "--out", "out", "--select", "cosine>0", "--queries", "4"),
    "preference": ("--count", "2", "--out", "out"),
    "report": ("--images", "data/images", "--modes", "1"),
}


def save(path: Path, pixels: np.ndarray) -> None:
    """A file of the same size in bytes, whatever the pixels, and of the same time of change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=0)
    os.utime(path, ns=(10**18, 10**18))


def save_model(seed: int, **preprocess) -> None:
    checkpoint, rng = qkjax.load(DATA / "a.npz"), np.random.default_rng(seed)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), checkpoint.params)
    write_checkpoint(Path("model.npz"), checkpoint.config, params, replace(checkpoint.preprocess, **preprocess))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with a model, images and masks of objects."""
    monkeypatch.chdir(tmp_path)
    save_model(0)
    replace_images(0), replace_masks(0)
    return tmp_path


def replace_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(3):
        save(Path(f"data/images/{i}.png"), rng.integers(0, 256, (32, 32, 3), np.uint8))


def replace_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(3):
        save(Path(f"data/masks/{i}.png"), rng.integers(1, 4, (2, 2), np.uint8).repeat(16, 0).repeat(16, 1))


CHANGES = {
    "images": (lambda: replace_images(1), (), "images"),
    "masks": (lambda: replace_masks(1), (), "images"),
    "weights": (lambda: save_model(1), (), "parameters"),
    "preprocessing": (lambda: save_model(0, mean=(0.4, 0.4, 0.4)), (), "preprocess"),
    "resolution": (lambda: None, ("--resolution", "40", "40"), "resolution"),
    "number format": (lambda: None, ("--dtype", "bfloat16"), "dtype"),
}
OF = {
    "top-images": ("images", "weights", "preprocessing", "resolution", "number format"),
    "objects": ("images", "masks", "weights"),
    "ablate": ("images", "weights"),
    "preference": ("weights", "number format"),
    "report": ("images", "weights"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in OF.items() for change in changes])
def test_a_finished_result(name, change, folder, monkeypatch, capsys):
    words = (name, "model.npz", *OPTIONS[name])
    alter, more, named = CHANGES[change]
    path = folder / (RESULTS[name] if name == "report" else f"out/{RESULTS[name]}")
    assert command(monkeypatch, capsys, *words).code == 0
    before = path.read_bytes()
    settings = json.loads(xr.load_dataset(path).attrs["settings"])
    alter()
    refused = command(monkeypatch, capsys, *words, *more)
    assert refused.code == 2
    (line,) = re.findall("^qkjax: error: .*", refused.err, re.MULTILINE)
    assert named in line
    assert "--fresh" in line
    assert path.read_bytes() == before
    again = command(monkeypatch, capsys, *words, *more, "--fresh")
    assert again.code == 0, again.err
    now = json.loads(xr.load_dataset(path).attrs["settings"])
    assert now[named] != settings[named]


@pytest.mark.parametrize("change", ["images", "weights", "preprocessing"])
def test_interrupted_pass(change, folder):
    """In Python: `fresh` discards the progress of other inputs."""
    images, partial = open_images(Path("data/images")), folder / "x.partial.npz"
    qkjax.top_images(qkjax.load("model.npz"), images, top=1, partial=partial)
    CHANGES[change][0]()
    images, checkpoint = open_images(Path("data/images")), qkjax.load("model.npz")
    with pytest.raises(qkjax.QkjaxError, match=rf"different settings \({CHANGES[change][2]}\).*fresh=True"):
        qkjax.top_images(checkpoint, images, top=1, partial=partial)
    fresh = qkjax.top_images(checkpoint, images, top=1, partial=partial, fresh=True)
    xr.testing.assert_equal(fresh, qkjax.top_images(checkpoint, images, top=1))


def test_finished_training(folder):
    """Images of a finished run that were replaced, and options that have changed."""
    shutil.rmtree("data")
    for label in "ab":
        for i in range(6):
            save(Path(f"data/{label}/{i}.png"), np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8))
    config = qkjax.TrainConfig(
        data="data", resolution=16, patch=8, width=16, depth=1, heads=1, mlp_dim=16, steps=2, warmup=0, every=2, batch=4
    )
    first = qkjax.train(config, "run")
    assert qkjax.train(config, "run") == first
    with pytest.raises(qkjax.QkjaxError, match=r"contains a run with steps=2: .* fresh=True"):
        qkjax.train(replace(config, steps=4), "run")
    save(Path("data/a/0.png"), np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(qkjax.QkjaxError, match=r"data='data' has changed since the run in run began: .*fresh=True"):
        qkjax.train(config, "run")
    assert qkjax.train(replace(config, steps=4), "run", fresh=True)["step"] == 4


def test_training_from_a_checkpoint_that_was_replaced(folder):
    """The start decides the result of a run, too; `run` is finished here."""
    config = qkjax.ViTConfig(16, 1, 1, 16, 16, (2, 2), channels=1, grid=(4, 4), classes=10)
    for seed, name in enumerate(("start.npz", "other.npz")):
        tree = qkjax.ViT(config).init(jax.random.key(seed), np.zeros((1, 8, 8, 1)))["params"]
        write_checkpoint(Path(name), config, jax.tree.map(np.asarray, tree))
    settings = qkjax.TrainConfig(
        start="start.npz", width=16, depth=1, heads=1, mlp_dim=16, steps=2, warmup=0, every=2, batch=4
    )
    first = qkjax.train(settings, "run")
    assert qkjax.train(settings, "run") == first
    shutil.copy("other.npz", "start.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"start='start.npz' has changed since the run in run began: .*fresh"):
        qkjax.train(settings, "run")
    assert qkjax.train(settings, "run", fresh=True)["loss"] != first["loss"]


def test_an_opened_image_set_whose_files_are_replaced(folder):
    """A set that is opened once and passed twice: its fingerprint is that of the files when it was opened."""
    images, checkpoint = open_images("data/images"), qkjax.load(DATA / "a.npz")
    qkjax.top_images(checkpoint, images, top=1)
    file = Path("data/images/1.png")
    save(file, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(qkjax.QkjaxError, match="were replaced after the image set was opened: open it again"):
        qkjax.top_images(checkpoint, images, top=1)
    few, _ = images.spread(2)
    with pytest.raises(qkjax.QkjaxError, match="open it again"):
        qkjax.top_images(checkpoint, few, top=1)
    assert qkjax.top_images(checkpoint, open_images("data/images"), top=1).sizes["place"] == 1


def test_other_labels_are_another_ablation(folder, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        save(Path(f"photographs/{i}.png"), rng.integers(0, 256, (32, 32, 3), np.uint8))
    images, checkpoint = open_images("photographs"), qkjax.load(DATA / "a.npz")
    plan, count = [{"edit": "drop", "select": "all"}], len(images)
    results = []
    for labels in ([i % 2 for i in range(count)], [i * 2 // count for i in range(count)]):
        for partial in (tmp_path / "done", tmp_path / "other" / str(labels[1])):
            results.append(qkjax.ablate(checkpoint, plan, images, labels=Labels(labels, ["a", "b"]), partial=partial))
    first, _, second, computed_anew = results
    xr.testing.assert_equal(second, computed_anew)
    assert first.attrs["settings"] != second.attrs["settings"]


def test_class_names_that_are_long_numbers():
    """Python refuses to read numbers of more than 4,300 digits."""
    from qkjax.images.labels import head_classes

    assert head_classes(["1", "0"], 2) == [1, 0]
    assert head_classes(["1" * 5000, "2", "3"], 2) is None
