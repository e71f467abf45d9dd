"""Edits of a model with rotary positions: the mean over all pairs of places, in float64 by brute force."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from test_rotary_modes import GRID, checkpoint, interactions  # noqa: F401 (a fixture)

import qkjax
from qkjax.analyses.edit import edit_with_notes
from qkjax.weights.checkpoint import Checkpoint

SELECT = "cosine>0 layers=0"


@pytest.fixture
def biased(checkpoint: Checkpoint) -> Checkpoint:  # noqa: F811
    """The checkpoint with a query bias, for a grid of 3 x 4 patches."""
    bias = np.random.default_rng(3).standard_normal((2, 2, 8)).astype(np.float32)
    params = qkjax.vit.tree.with_query_key(checkpoint.params, qkjax.query_key(checkpoint)._replace(query_bias=bias))
    return replace(checkpoint, params=params, config=replace(checkpoint.config, grid=GRID))


def mean_and_modes(checkpoint: Checkpoint):  # noqa: F811
    """Mbar of the edited layer, and its modes with their weights: 1 for those with a cosine above 0."""
    mean = interactions(checkpoint).mean((2, 3))
    u, s, vt = np.linalg.svd(mean[0])
    u, s, v = u[..., :8], s[..., :8], vt.swapaxes(-1, -2)[..., :8]
    present = s > 1e-6 * s.max()
    return mean, u, s * present, v, ((u * v).sum(-2) > 0) & present


@pytest.mark.parametrize("kind", ["drop", "keep", "flip", "rotate"])
def test_edited_kernels_have_the_edited_mean(biased, kind):
    mean, u, s, v, chosen = mean_and_modes(biased)
    edited, notes = edit_with_notes(biased, kind, SELECT)
    strengths = np.where(chosen, {"drop": 0, "flip": -1}.get(kind, 1), 0 if kind == "keep" else 1) * s
    keys = np.where(chosen[:, None], u, v) if kind == "rotate" else v
    expected = np.einsum("hen,hn,hfn->hef", u, strengths, keys)
    after = interactions(edited).mean((2, 3))
    np.testing.assert_allclose(after[0], expected, atol=1e-5 * np.abs(mean).max())
    np.testing.assert_array_equal(after[1], mean[1])
    assert "purely positional" in notes[0] and "depends on the places" in notes[1]
    bias_moves = any("key bias term" in note for note in notes)
    assert bias_moves == (kind == "rotate")
    assert edited.config == biased.config


def test_shares_in_the_notes(biased):
    """What no edit reaches, and the part of the change that depends on place, over all pairs of places."""
    before = interactions(biased)
    everything = interactions(edit_with_notes(biased, "drop", "all")[0])
    edited, notes = edit_with_notes(biased, "drop", SELECT)
    reach = (everything[0] ** 2).sum((-1, -2)).mean((1, 2)) / (before[0] ** 2).sum((-1, -2)).mean((1, 2))
    assert notes[0].startswith(f"{reach.mean():.1%}") and f"at most {reach.max():.1%}" in notes[0]
    change = (interactions(edited) - before)[0]
    place = 1 - (change.mean((1, 2)) ** 2).sum((-1, -2)) / (change**2).sum((-1, -2)).mean((1, 2))
    assert f"{place.mean():.1%} of the squared change" in notes[1] and f"at most {place.max():.1%}" in notes[1]


def test_symmetric_part_is_the_best_in_the_planes_of_the_model(biased):
    mean, *_ = mean_and_modes(biased)
    edited, notes = edit_with_notes(biased, "symmetric", "layers=0")
    part = (mean[0] + mean[0].swapaxes(-1, -2)) / 2
    u, s, vt = np.linalg.svd(part)
    count = 4  # two of the four planes are purely positional
    best = np.einsum("hen,hn,hnf->hef", u[..., :count], s[:, :count], vt[:, :count])
    np.testing.assert_allclose(interactions(edited).mean((2, 3))[0], best, atol=1e-5 * np.abs(mean).max())
    kept = ((s[:, :count] ** 2).sum(-1) / (s**2).sum(-1)).mean()
    assert f"{kept:.4f}" in notes[0]


def test_biases(biased):
    unbiased, _ = edit_with_notes(biased, "unbias", "layers=1")
    own, new = qkjax.query_key(biased), qkjax.query_key(unbiased)
    np.testing.assert_array_equal(new.query_bias, own.query_bias * np.array([1, 0], np.float32)[:, None, None])
    for ours, theirs in zip(new[:2], own[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    dropped, _ = edit_with_notes(biased, "drop", SELECT, key_bias=False)
    assert not qkjax.query_key(dropped).query_bias[0].any() and qkjax.query_key(dropped).query_bias[1].all()


def test_controls_have_the_strength_of_the_edit(biased):
    """Up to 1e-4 of the squared strength of a head, to which `resolve` rounds."""
    mean, _, s, _, chosen = mean_and_modes(biased)
    control, _ = edit_with_notes(biased, "drop", SELECT, control=0)
    change = ((interactions(control).mean((2, 3))[0] - mean[0]) ** 2).sum((-1, -2))
    np.testing.assert_allclose(change, (s**2 * chosen).sum(-1), atol=1e-4 * (s**2).sum(-1).max())


def test_export_refuses_rotary_positions(biased, tmp_path):
    """big_vision would run the model without its rotation."""
    with pytest.raises(qkjax.QkjaxError, match="has rotary positions, which big_vision's parameter tree lacks"):
        qkjax.export(biased, tmp_path / "edited.npz")


def test_heads_cannot_be_widened(biased):
    with pytest.raises(qkjax.QkjaxError, match="exact=True received a model with rotary positions"):
        qkjax.edit(biased, "drop", SELECT, exact=True)
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        qkjax.edit(biased, "drop", SELECT)
    assert any("purely positional" in str(warning.message) for warning in issued)
