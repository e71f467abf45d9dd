"""Differences between two models, against dense matrices and known changes."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

import qkjax
from qkjax.interaction.difference import difference


def decompose(m: np.ndarray, rank: int) -> qkjax.interaction.modes.Modes:
    """Modes of a given dense M (layers, heads, embed, embed) of at most `rank`."""
    u, s, vt = np.linalg.svd(m)
    kernels = (u[..., :rank] * s[..., None, :rank], np.swapaxes(vt, -1, -2)[..., :rank])
    return qkjax.decompose(*(np.moveaxis(k, 1, 2).astype(np.float32) for k in kernels))


@pytest.mark.gpu
def test_against_dense_matrices(kernels):
    other = tuple(k + 0.3 * np.random.default_rng(1).standard_normal(k.shape).astype(np.float32) for k in kernels)
    first, second = qkjax.decompose(*kernels), qkjax.decompose(*other)
    found = difference(first, second)
    m, n = (np.einsum("ldhk,lehk->lhde", *(k.astype(np.float64) for k in pair)) for pair in (kernels, other))
    norms = np.linalg.norm(m, axis=(-2, -1)), np.linalg.norm(n, axis=(-2, -1))
    np.testing.assert_allclose(found.similarity, (m * n).sum((-1, -2)) / norms[0] / norms[1], atol=1e-5)
    np.testing.assert_allclose(found.strength_ratio, norms[1] / norms[0], rtol=1e-5)
    angles = np.cos(np.sort(subspace_angles(kernels[0][1, :, 2].astype(np.float64), other[0][1, :, 2])))
    np.testing.assert_allclose(found.query_angles[1, 2], angles, atol=1e-5)


def test_a_model_does_not_differ_from_itself(default_modes):
    found = difference(default_modes, default_modes)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-5)
    np.testing.assert_allclose(found.query_angles, 1, atol=1e-5)
    np.testing.assert_allclose(found.match_similarity, 1, atol=1e-4)
    assert (found.match == np.arange(64)).all()


def test_strengths_that_change_places_are_matched(kernels):
    """The same directions with other strengths: modes are found again, in their new order."""
    first = qkjax.decompose(*kernels)
    u, _, v = (np.asarray(x, np.float64) for x in first)
    strengths = np.random.default_rng(2).permuted(np.tile(np.arange(12.0, 0, -1), (3, 4, 1)), axis=-1)
    second = decompose(np.einsum("lhdn,lhn,lhen->lhde", u, strengths, v), 12)
    found = difference(first, second)
    np.testing.assert_allclose(found.match_similarity, 1, atol=1e-4)
    assert (found.match == np.argsort(np.argsort(-strengths, axis=-1), axis=-1)).all()
    np.testing.assert_allclose(found.match_ratio * np.asarray(first.s), strengths, rtol=1e-4)


def test_random_models_are_as_far_apart_as_chance(kernels):
    rng = np.random.default_rng(9)
    other = qkjax.decompose(*rng.standard_normal((2, 3, 48, 4, 12)).astype(np.float32))
    found = difference(qkjax.decompose(*kernels), other)
    assert np.abs(found.similarity).max() < 0.2
    np.testing.assert_allclose((np.asarray(found.query_angles) ** 2).mean(), 12 / 48, atol=0.02)


def test_other_architectures_are_refused(kernels):
    first = qkjax.decompose(*kernels)
    second = qkjax.decompose(*(k[:2] for k in kernels))
    with pytest.raises(qkjax.QkjaxError, match="the same architecture"):
        difference(first, second)
