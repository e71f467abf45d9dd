"""Modes know their frame, and what needs the plain frame refuses another."""

import jax
import numpy as np
import pytest
import xarray as xr
from commands import command

import qkjax
from conftest import DATA
from qkjax.activations import project
from qkjax.analyses.analyze import overlay
from qkjax.interaction.edit import edit
from qkjax.interaction.frame import PLAIN, Frame


@pytest.fixture(scope="module")
def checkpoint():
    return qkjax.load(DATA / "a.npz")


@pytest.fixture(
    scope="module", params=[{"fold_scale": True}, {"fold_scale": True, "center": True}, {"normalize": True}]
)
def folded(request, checkpoint):
    return qkjax.decompose(checkpoint, **request.param), Frame(**request.param)


def test_the_frame_is_that_of_the_call_and_survives_transformations(folded, checkpoint):
    modes, frame = folded
    assert modes.frame == frame != PLAIN
    assert qkjax.decompose(checkpoint).frame == PLAIN
    for changed in (
        jax.device_put(modes),
        jax.tree.map(lambda x: 2 * x, modes),
        jax.jit(lambda m: m)(modes),
        jax.vmap(lambda m: m)(modes),
    ):
        assert changed.frame == frame
    u, s, v = modes
    assert (u is modes.u, s is modes.s, v is modes.v) == (True, True, True)


def test_what_needs_the_plain_frame_refuses_another(folded, checkpoint):
    """They gave maps, logits and kernels of another interaction before, without a word."""
    modes, frame = folded
    parts, terms = qkjax.query_key(checkpoint.params), qkjax.bias_terms(checkpoint)
    layers, heads, embed, rank = modes.u.shape
    tokens = np.zeros((layers, 1, 4, embed), np.float32)
    directions = terms.query_direction, terms.key_direction, terms.constant
    for call in (
        lambda: project.query_key_maps(tokens, modes, 0),
        lambda: project.logits_from_modes(tokens, modes, *directions, rank),
        lambda: edit(parts, modes, "drop", np.ones((layers, heads, rank), np.float32)),
        lambda: qkjax.query_key_maps(checkpoint, "chelsea", modes),
    ):
        with pytest.raises(qkjax.QkjaxError, match=f"got modes in the frame {frame}: expected the plain frame"):
            call()


def test_representations_are_short(default, default_modes):
    metrics = qkjax.measure(default_modes)
    for value in (default, default_modes, metrics):
        assert len(repr(value)) < 600
        assert len(value._repr_html_()) < 3000
    assert "12 layers x 6 heads x 64 modes" in repr(default_modes)
    assert "0.62, 0.66, 0.45" in repr(metrics)
    assert "<table>" in default_modes._repr_html_()
    assert repr(jax.tree.map(lambda x: x[0], default_modes)).startswith("Modes(u (6, 384, 64)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "plain frame"),
        ({"fold_scale": True}, "folded frame"),
        ({"fold_scale": True, "center": True, "normalize": True}, "folded and centred frame, M / sqrt(d)"),
    ],
)
def test_figures_state_the_frame(options, words):
    first, second = qkjax.load(DATA / "a.npz"), qkjax.load(DATA / "d.npz")
    result = qkjax.analyze(first, **options)
    for draw in qkjax.describe(result).figures.values():
        figure = draw()
        titles = [axes.get_title() for axes in figure.axes] + [figure.get_suptitle()]
        assert any(title.split("\n")[0] == f"a ({words})" for title in titles), titles
    axes = overlay({"a": result, "b": result}).axes[0]
    assert axes.get_ylabel().endswith(f"({words})")
    difference = qkjax.describe(qkjax.compare(first, second, **options)).figures["difference"]()
    assert difference.get_suptitle() == f"d compared with a ({words})"


@pytest.mark.parametrize("words", [("--frame", "folded"), ("--fold-scale",)])
def test_the_folded_frame_has_two_names(words, tmp_path, monkeypatch, capsys):
    done = command(monkeypatch, capsys, "analyze", DATA / "a.npz", *words, "--out", tmp_path)
    assert done.code == 0, done.err
    result = xr.load_dataset(tmp_path / "modes.nc")
    wanted = qkjax.analyze(qkjax.load(DATA / "a.npz"), fold_scale=True)
    np.testing.assert_array_equal(result.cosine, wanted.cosine)
    assert result.attrs["options"] == wanted.attrs["options"]
