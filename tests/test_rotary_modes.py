"""Modes of a checkpoint with rotary positions against dense float64 matrices, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

import qkjax
from qkjax.errors import QkjaxError
from qkjax.interaction.rotary.rotation import rotate
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary import patch_rotation
from qkjax.vit.rotary_config import Rotary
from qkjax.vit.tree import bare_tree
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.preprocessing import from_architecture

GRID = (3, 4)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = ViTConfig(24, 2, 2, 8, 48, (8, 8), posemb="none", class_token=True, registers=4, pool="tok",
                       rotary=Rotary(100.0, "centred", pairs="half"))  # fmt: skip
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 2, 24, 2, 8)).astype(np.float32)
    bias, norm = np.zeros((2, 2, 8), np.float32), np.ones((2, 24), np.float32)
    parts = qkjax.QueryKey(query, key, bias, bias, norm, 0 * norm)
    return Checkpoint("rotary", config, bare_tree(parts), "rotary.npz", from_architecture(config))


def interactions(checkpoint: Checkpoint) -> np.ndarray:
    """M of all pairs of places, from rotated kernels: (layers, heads, i, j, embed, embed)."""
    parts, angles = qkjax.query_key(checkpoint.params), patch_rotation(checkpoint.config, GRID).angles
    kernels = (np.moveaxis(x.astype(np.float64), 2, 1)[:, :, None] for x in parts[:2])
    query, key = (rotate(x, angles[:, None]) for x in kernels)
    return np.einsum("lhied,lhjfd->lhijef", query, key)


def dense(modes: qkjax.Modes) -> np.ndarray:
    return np.einsum("lhen,lhn,lhfn->lhef", *(np.asarray(x, np.float64) for x in modes))


def test_modes_are_those_of_the_mean_over_places(checkpoint):
    modes = qkjax.decompose(checkpoint, grid=GRID)
    np.testing.assert_allclose(dense(modes), interactions(checkpoint).mean((2, 3)), atol=2e-5)
    assert str(modes.frame) == "mean over places of a 3 x 4 grid"
    means = np.exp(1j * patch_rotation(checkpoint.config, GRID).angles).mean(0)
    np.testing.assert_allclose(modes.frame.positions.coherence, abs(means) ** 2, atol=1e-7)


@pytest.mark.parametrize("offset", [(0, 0), (2, -3), (-1, 1)])
def test_modes_of_an_offset(checkpoint, offset):
    modes = qkjax.decompose(checkpoint, offset=offset, grid=GRID)
    key = max(0, -offset[0]), max(0, -offset[1])
    query = key[0] + offset[0], key[1] + offset[1]
    expected = interactions(checkpoint)[:, :, query[0] * 4 + query[1], key[0] * 4 + key[1]]
    np.testing.assert_allclose(dense(modes), expected, atol=5e-5)
    np.testing.assert_allclose(modes.s, np.linalg.svd(expected, compute_uv=False)[..., :8], rtol=1e-5)


def test_modes_without_positions_are_those_of_the_kernels(checkpoint):
    modes = qkjax.decompose(checkpoint, positions="none")
    own = qkjax.decompose(*qkjax.query_key(checkpoint.params)[:2])
    assert all(np.array_equal(x, y) for x, y in zip(modes, own, strict=True))
    assert str(modes.frame) == "without rotation" and str(own.frame) == "plain"


def test_grid_of_a_query_key(checkpoint):
    side = checkpoint.preprocess.crop // 8
    assert qkjax.query_key(checkpoint).rotation.grid == (side, side)
    assert qkjax.query_key(checkpoint, GRID).rotation.grid == GRID
    assert qkjax.query_key(replace(checkpoint, config=replace(checkpoint.config, grid=(2, 5)))).rotation.grid == (2, 5)
    assert qkjax.query_key(checkpoint.params).rotation is None


@pytest.mark.parametrize("arguments, message", [
    ({"positions": "median"}, "expected 'mean' or 'none'"),
    ({"positions": "none", "offset": (0, 1)}, "only one of them"),
    ({"offset": (3, 0), "grid": GRID}, "3 x 4 grid"),
    ({"grid": (0, 4)}, "two positive whole numbers"),
])  # fmt: skip
def test_refused_arguments(checkpoint, arguments, message):
    with pytest.raises(QkjaxError, match=message):
        qkjax.decompose(checkpoint, **arguments)


OPTIONS = [{"positions": "none"}, {"positions": "mean"}, {"offset": (0, 1)}, {"grid": GRID}]


@pytest.mark.parametrize("arguments", OPTIONS)
def test_refused_without_rotary_positions(checkpoint, arguments):
    plain = replace(checkpoint, config=replace(checkpoint.config, rotary=None))
    with pytest.raises(QkjaxError, match="only to a checkpoint with rotary positions"):
        qkjax.decompose(plain, **arguments)


def test_bias_terms_do_not_know_the_rotation(checkpoint):
    with pytest.raises(QkjaxError, match="rotary positions"):
        qkjax.bias_terms(checkpoint)
