"""Checkpoints in memory and written to files. The golden files show the layout that big_vision reads."""

import doctest
import hashlib
import json
from dataclasses import asdict, replace
from importlib import import_module

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import qkjax
from conftest import DATA
from qkjax.passes.settings import settings_of
from qkjax.vit.model import forward


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "old1_prelinen"])
def test_export_has_big_visions_layout_bit_for_bit(tmp_path, name):
    assert qkjax.export(qkjax.load(DATA / f"{name}.npz"), tmp_path / "x.npz") == []
    wanted = "a" if name in ("d", "old1_prelinen") else name
    with np.load(DATA / f"{wanted}.npz") as theirs, np.load(tmp_path / "x.npz") as ours:
        prefix = "" if wanted == "b" else "params/"
        keys = {key.removeprefix(prefix) for key in theirs.files if key.startswith(prefix)}
        assert {key.removeprefix("params/") for key in ours.files if key.startswith("params/")} == keys
        for key in keys:
            np.testing.assert_array_equal(ours[f"params/{key}"], theirs[prefix + key])
            assert ours[f"params/{key}"].dtype == theirs[prefix + key].dtype


def test_default_model_exports_without_layer_scale(tmp_path, default, photograph):
    notes = qkjax.export(default, tmp_path / "x.npz")
    assert len(notes) == 2
    assert "tanh" in notes[0]
    folded = qkjax.load(tmp_path / "x.npz")
    assert not any("LayerScale" in name for name in flatten_dict(folded.params, sep="/"))
    assert (folded.config.activation, folded.config.posemb_resample) == ("gelu", "bicubic")
    assert folded.preprocess == default.preprocess, "though its tree looks like another family's now"
    before, _ = forward(qkjax.ViT(default.config), default.params, photograph)
    after, _ = forward(qkjax.ViT(folded.config), folded.params, photograph)
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"resize": "twist"}, {"filter": []}, {"crop": 0}, {"crop": "a"}, {"crop": 1.5}, {"crop": 999}, {"mean": [1, 2]},
     {"std": [0, 1, 1]}, {"mean": None}, {"more": 1}, "[", "[]", "[" * 9999],
)  # fmt: skip
def test_images_of_an_altered_file(tmp_path, change):
    checkpoint = qkjax.load(DATA / "a.npz")
    text = change if isinstance(change, str) else json.dumps(asdict(checkpoint.preprocess) | change)
    arrays = {f"params/{name}": leaf for name, leaf in flatten_dict(checkpoint.params, sep="/").items()}
    np.savez(tmp_path / "x.npz", **arrays, **{"qkjax/preprocess": np.asarray(text)})
    with pytest.raises(qkjax.QkjaxError, match=r"x\.npz: its preprocessing"):
        qkjax.load(tmp_path / "x.npz")


def test_export_refuses_what_big_vision_cannot_hold(tmp_path, default):
    with_registers = replace(default, config=replace(default.config, registers=4))
    with pytest.raises(qkjax.QkjaxError, match="extra tokens"):
        qkjax.export(with_registers, tmp_path / "x.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"path=.*: expected a name that ends in \.npz, as big_vision requires"):
        qkjax.export(default, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []


def test_save_and_load_lose_nothing(tmp_path):
    checkpoint = qkjax.load(DATA / "c.npz")
    qkjax.save(replace(checkpoint, preprocess=replace(checkpoint.preprocess, mean=(0.1, 0.2, 0.3))), tmp_path / "x.npz")
    copy = qkjax.load(tmp_path / "x.npz")
    assert (copy.config, copy.preprocess.mean) == (checkpoint.config, (0.1, 0.2, 0.3))
    assert digest(copy) == digest(checkpoint)
    with pytest.raises(qkjax.QkjaxError, match=r"path=.*x\.bin': expected a name that ends in \.npz"):
        qkjax.save(checkpoint, tmp_path / "x.bin")


def digest(checkpoint: qkjax.Checkpoint) -> str:
    """The digest by another route: of the parameters in the order of their names."""
    flat = flatten_dict(checkpoint.params, sep="/")
    data = b"".join(name.encode() + np.asarray(flat[name]).tobytes() for name in sorted(flat))
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_repr_is_a_few_lines(default):
    text = repr(default)
    assert len(text.splitlines()) == 5
    assert len(text) < 600
    assert text.startswith("Checkpoint 'dinov2-vits14-focus'\n")
    for part in (default.source, "12 with 6 heads each", "14 x 14 pixels", "layer scale", "22,055,808"):
        assert part in text
    assert text.endswith(digest(default))
    images = qkjax.images.ImageSet("x", (), lambda index: index, "x")
    options = qkjax.PassOptions()
    assert settings_of(default, images, options)["parameters"] in text, "the digest that results record"


def test_notebooks_show_a_table():
    checkpoint = replace(qkjax.load(DATA / "b.npz"), name="<b>&", source='"><script>')
    page = checkpoint._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "<script>" not in page
    assert digest(checkpoint) in page
    assert page.count("<tr ") == page.count("</tr>") >= 7
    assert len(page) < 3000
    changed = flatten_dict(checkpoint.params, sep="/")
    changed["embedding/bias"] = changed["embedding/bias"] + 1
    other = replace(checkpoint, params=unflatten_dict(changed, sep="/"))
    assert digest(checkpoint) not in repr(other)


@pytest.mark.parametrize("module", ["checkpoint", "export", "load", "catalogue.matching"])
def test_examples_of_docstrings(module, default):
    result = doctest.testmod(import_module(f"qkjax.weights.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
