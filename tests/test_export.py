"""Writing checkpoints. That big_vision reads them is checked by its own layout: the golden files."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import qkjax
from conftest import DATA
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
    with pytest.raises(qkjax.QkjaxError, match=r"x\.npz: its member on images"):
        qkjax.load(tmp_path / "x.npz")


def test_export_refuses_what_big_vision_cannot_hold(tmp_path, default):
    from dataclasses import replace

    with_registers = replace(default, config=replace(default.config, registers=4))
    with pytest.raises(qkjax.QkjaxError, match="extra tokens"):
        qkjax.export(with_registers, tmp_path / "x.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"must end in \.npz"):
        qkjax.export(default, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []
