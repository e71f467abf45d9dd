"""Directionality and symmetry score against dense float64 matrices, and their chance against exchanged norms."""

import numpy as np
import pytest

import qkjax
from qkjax.interaction.directionality import directionality


def of_matrix(m: np.ndarray) -> float:
    """(c - r) / (c + r), where c and r are what column and row norms exceed their mean + 2 standard deviations by."""
    excess = []
    for axis in (0, 1):
        norms = np.sqrt((m**2).sum(axis))
        threshold = norms.mean() + 2 * norms.std(ddof=1)
        excess.append(sum(norm - threshold for norm in norms if norm > threshold))
    return (excess[0] - excess[1]) / sum(excess) if sum(excess) else 0.0


@pytest.mark.parametrize("options", [{}, {"norm_scale": "random", "center": True}])
def test_against_dense_matrices(kernels, options):
    scale = np.random.default_rng(2).uniform(0.5, 2, (3, 48)).astype(np.float32)
    options = options | ({"norm_scale": scale} if options else {})
    found = directionality(qkjax.decompose(*kernels, **options), *kernels, options.get("norm_scale"))
    q, k = (x.astype(np.float64) for x in kernels)
    if options:
        q, k = (x * scale[:, :, None, None] for x in (q, k))
        q, k = (x - x.mean(1, keepdims=True) for x in (q, k))
    m = np.einsum("ldhk,lehk->lhde", q, k)
    expected = [[of_matrix(head) for head in layer] for layer in m]
    np.testing.assert_allclose(found.directionality, expected, atol=2e-4)
    total = m.sum(1)
    np.testing.assert_allclose(found.layer_directionality, [of_matrix(layer) for layer in total], atol=2e-4)
    symmetric, antisymmetric = (total + total.swapaxes(1, 2)) / 2, (total - total.swapaxes(1, 2)) / 2
    parts = [(x**2).sum((1, 2)) for x in (symmetric, antisymmetric, total)]
    np.testing.assert_allclose(found.layer_symmetry_score, (parts[0] - parts[1]) / parts[2], atol=1e-5)


def test_strong_columns_and_rows():
    """Key kernels with eight strong dimensions make columns of M strong; exchanging both kernels changes the sign."""
    query, key = np.random.default_rng(0).standard_normal((2, 3, 96, 4, 12)).astype(np.float32)
    key[:, :8] *= 6
    columns = directionality(qkjax.decompose(query, key), query, key)
    rows = directionality(qkjax.decompose(key, query), key, query)
    assert (columns.directionality > 0.6).all()
    assert (columns.directionality > columns.directionality_width).mean() > 0.9
    np.testing.assert_allclose(rows.directionality, -columns.directionality, atol=1e-4)
    np.testing.assert_allclose(rows.layer_directionality, -columns.layer_directionality, atol=1e-4)


def test_type_one_error():
    """Random kernels have no direction: 5% of heads lie outside of their own interval."""
    query, key = np.random.default_rng(3).standard_normal((2, 50, 96, 16, 8)).astype(np.float32)
    found = directionality(qkjax.decompose(query, key), query, key)
    outside = (np.abs(found.directionality) > found.directionality_width).mean()
    assert 0.03 < outside < 0.07  # the error of a share of 800 heads is 0.8%


def test_a_head_of_zeros_has_no_direction(kernels):
    query, key = (x.copy() for x in kernels)
    query[1, :, 2] = 0
    query[2] = 0
    found = directionality(qkjax.decompose(query, key), query, key)
    assert np.argwhere(np.isnan(found.directionality)).tolist() == [[1, 2], [2, 0], [2, 1], [2, 2], [2, 3]]
    assert np.isnan(found.layer_symmetry_score).tolist() == [False, False, True]
