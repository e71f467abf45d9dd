"""Writing checkpoints. That big_vision reads them is checked by its own layout: the golden files."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import qkjax
from conftest import DATA


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
    before, _ = qkjax.forward(qkjax.ViT(default.config), default.params, photograph)
    after, _ = qkjax.forward(qkjax.ViT(folded.config), folded.params, photograph)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_export_refuses_what_big_vision_cannot_hold(tmp_path, default):
    from dataclasses import replace

    with_registers = replace(default, config=replace(default.config, registers=4))
    with pytest.raises(qkjax.QkjaxError, match="extra tokens"):
        qkjax.export(with_registers, tmp_path / "x.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"must end in \.npz"):
        qkjax.export(default, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []
