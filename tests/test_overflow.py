"""Models whose activations or kernels overflow: every command stops with one line, and writes no result of NaN."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import command
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

import qkjax
from conftest import DATA
from qkjax.activations.scores import SCORES, both_signs
from qkjax.activations.top_k import add, empty
from qkjax.cli import COMMANDS
from qkjax.weights.checkpoint import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
LARGE = np.float32(3e38)
MLP = ("MlpBlock_0/Dense_1/kernel",)
QUERY_KEY = tuple(f"MultiHeadDotProductAttention_0/{name}/kernel" for name in ("query", "key"))
BY_IMAGES = {
    "preference": ("--count", "2"),
    "objects": ("--count", "2"),
    "sinks": ("--images", "images"),
    "tokens": ("--images", "images"),
    "ablate": ("--images", "images", "--select", "cosine>0", "--queries", "4"),
    "top-images": ("--images", "images"),
    "image": ("images/0.png",),
    "report": ("--images", "images"),
}
BY_WEIGHTS = {
    "analyze": (),
    "compare": (DATA / "a.npz",),
    "export": ("edited.npz", "--edit", "symmetric"),
}
NO_MODEL = {"models", "fetch"}
RELATIVE = {"composition"}
"""Commands that divide strengths by their largest, and so accept kernels of any finite size."""


def overflowing(path: Path, kernels: tuple[str, ...]) -> Path:
    """A model in whose second block some kernels are the largest numbers, with random signs."""
    checkpoint, rng = qkjax.load(DATA / "a.npz"), np.random.default_rng(0)
    flat = dict(flatten_dict(jax.tree.map(np.asarray, checkpoint.params), sep="/"))
    for name in kernels:
        shape = flat[f"Transformer/encoderblock_1/{name}"].shape
        flat[f"Transformer/encoderblock_1/{name}"] = LARGE * rng.choice([-1, 1], shape).astype(np.float32)
    write_checkpoint(path, checkpoint.config, unflatten_dict(flat, sep="/"), checkpoint.preprocess)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with two pictures."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"images/{i}.png")
    return tmp_path


def test_every_command_is_covered():
    assert {*BY_IMAGES, *BY_WEIGHTS, *NO_MODEL, *RELATIVE} == set(COMMANDS)


@pytest.mark.parametrize("name", BY_IMAGES)
def test_activations_that_overflow(name, folder, monkeypatch, capsys):
    model = overflowing(folder / "large.npz", MLP)
    before = {path for path in folder.rglob("*") if path.is_file()}
    assert_refused(command(monkeypatch, capsys, name, model, *BY_IMAGES[name]), "activations overflow; check")
    assert {path for path in folder.rglob("*") if path.is_file()} == before, "neither a result nor progress is left"


@pytest.mark.parametrize("name", BY_WEIGHTS)
def test_kernels_that_overflow(name, folder, monkeypatch, capsys):
    model = overflowing(folder / "large.npz", QUERY_KEY)
    before = {path for path in folder.rglob("*") if path.is_file()}
    done = command(monkeypatch, capsys, name, model, *BY_WEIGHTS[name])
    assert_refused(done, "query and key kernels are too large")
    assert "(first in layer 1, head 0)" in done.err
    assert {path for path in folder.rglob("*") if path.is_file()} == before


def test_composition_of_large_kernels_is_that_of_small_ones(folder):
    """Signs, and so directions, are the same; modes are rounded to float32."""
    model = qkjax.load(overflowing(folder / "large.npz", QUERY_KEY))
    block = model.params["Transformer"]["encoderblock_1"]["MultiHeadDotProductAttention_0"]
    large = qkjax.composition(model).score
    for name in ("query", "key"):
        block[name]["kernel"] = np.sign(block[name]["kernel"])
    assert np.isfinite(large).all()
    np.testing.assert_allclose(large, qkjax.composition(model).score, atol=1e-6)


def assert_refused(done, words: str) -> None:
    assert done.code == 2, done.err
    (line,) = re.findall("^qkjax: error: .*", done.err, re.MULTILINE)
    assert "NaN or infinite" in line
    assert words in line
    assert len(line) < 500


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e30])
@pytest.mark.parametrize("name", SCORES)
def test_one_image_among_others_that_overflows_ranks_first(name, value):
    """Its scores would otherwise be left out in silence, as if it could not be read."""
    maps = np.random.default_rng(0).standard_normal((2, 3, 9, 4)).astype(np.float32)
    maps[:, 1] = value
    query, key = map(jnp.asarray, maps)
    scores = both_signs(name, query, key)
    best = add(empty((4, 2), 1), scores, jnp.arange(3))
    if np.isfinite(value) and name != "product":
        assert np.isfinite(best.score).all()
    else:
        assert (best.score == np.inf).all()
        assert (best.image == 1).all()


@pytest.mark.parametrize("images", [0, 1])
def test_python_interface(images, folder):
    checkpoint = qkjax.load(overflowing(folder / "large.npz", (MLP, QUERY_KEY)[images]))
    calls = [lambda: qkjax.query_key_maps(checkpoint, folder / "images/0.png")]
    calls += [lambda: qkjax.attribute_logits(checkpoint, folder / "images/0.png")]
    calls += [lambda: qkjax.edit(checkpoint, "rotate"), lambda: qkjax.analyze(checkpoint)] if images else []
    for call in calls:
        with pytest.raises(qkjax.QkjaxError, match="are NaN or infinite"):
            call()
