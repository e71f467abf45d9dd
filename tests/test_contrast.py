"""Contrastive covariance against plain float64 loops over pairs of patches, and its relation to modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from qkjax.activations.contrast import contrast_of_modes, contrastive_covariance
from qkjax.analyses.contrast.tables import contrast_rows
from qkjax.images.segmented import crop_objects, mosaics
from qkjax.vit.model import forward
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.preprocessing import from_architecture

OPTIONS = qkjax.PassOptions(batch=2)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = qkjax.ViTConfig(24, 2, 2, 6, 40, (8, 8), grid=(4, 4), class_token=True, pool="tok")
    params = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), params)
    return Checkpoint("random", config, params, "random.npz", from_architecture(config))


def by_pairs(query, key, objects) -> np.ndarray:
    """One head in float64: the means over pairs of different patches, pair by pair and object by object."""
    query, key, objects = (np.asarray(x, np.float64) for x in (query, key, objects))
    sums, weights = np.zeros((2, query.shape[1], key.shape[1])), np.zeros(2)
    for i in range(len(query)):
        for j in range(len(key)):
            if i == j:
                continue
            for first in range(len(objects)):
                for second in range(len(objects)):
                    weight = objects[first, i] * objects[second, j]
                    sums[int(first != second)] += weight * np.outer(query[i], key[j])
                    weights[int(first != second)] += weight
    return sums[0] / weights[0] - sums[1] / weights[1]


def test_covariance_is_that_of_loops_over_pairs():
    """To 1e-6 of queries and keys of unit variance: fractional masks, an empty object, and uncovered patches."""
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 12, 2, 5)).astype(np.float32)
    objects = rng.dirichlet(np.ones(4), 12).T[:3].astype(np.float32)  # a fourth share is covered by no object
    objects[:, :5] = np.eye(3)[[0, 0, 1, 1, 1]].T
    objects = np.concatenate([objects, np.zeros((1, 12), np.float32)])
    own = contrastive_covariance(jnp.asarray(query), jnp.asarray(key), jnp.asarray(objects))
    for head in range(2):
        np.testing.assert_allclose(own[head], by_pairs(query[:, head], key[:, head], objects), atol=1e-6)


def test_a_pass_is_a_plain_loop(checkpoint):
    """Three scenes (one and a half batches), to 1e-6 of the largest product of a query and a key."""
    images = mosaics(3, 0)
    result = qkjax.contrastive_covariance(checkpoint, images, options=OPTIONS)
    wanted, control, largest = np.zeros((2, 2, 6, 6)), np.zeros((2, 2)), 0.0
    for i in range(3):
        pixels, objects = crop_objects(images.read(i), str(i), checkpoint.preprocess, None, (8, 8))
        pixels = qkjax.images.preprocess.normalise(pixels, checkpoint.preprocess)[None]
        _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, pixels, ("query", "key"))
        query, key = (np.asarray(seen[name], np.float64)[:, 0, 1:] for name in ("query", "key"))
        largest = max(largest, np.abs(query).max() * np.abs(key).max())
        for place in np.ndindex(2, 2):
            used = objects[objects.sum(1) > 0]
            own = query[place[0], :, place[1]], key[place[0], :, place[1]]
            wanted[place] += by_pairs(*own, used) / 3
            turned = used.reshape(-1, 4, 4)[:, ::-1, ::-1].reshape(len(used), -1)
            control[place] += np.trace(by_pairs(*own, turned)) / 3 / np.sqrt(6)
    np.testing.assert_allclose(result.covariance, wanted, atol=1e-6 * largest)
    traces = np.trace(wanted, axis1=2, axis2=3) / np.sqrt(6)
    np.testing.assert_allclose(result.mode_contrast.sum("mode"), traces, atol=1e-5 * largest)
    np.testing.assert_allclose(result.control_difference, control, atol=1e-5 * largest)
    assert [row["layer"] for row in contrast_rows(result)] == [0, 1]
    np.testing.assert_allclose([row["logit_difference"] for row in contrast_rows(result)], traces.mean(1), atol=1e-4)


def test_contrast_of_modes_is_that_of_dense_matrices():
    """tr(C) splits over modes as s_n u_n^T Delta v_n does, where C = Wq^T Delta Wk for any contrast Delta of tokens."""
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 12, 4))
    delta = rng.standard_normal((12, 12))
    u, s, v = np.linalg.svd(query @ key.T)
    u, s, v = u[:, :4], s[:4], v[:4].T
    covariance = query.T @ delta @ key
    own = contrast_of_modes(covariance, query.T @ u, key.T @ v, s)
    np.testing.assert_allclose(own.mode_contrast, s * np.einsum("dn,de,en->n", u, delta, v) / 2, rtol=1e-9)
    np.testing.assert_allclose(own.mode_contrast.sum(), np.trace(covariance) / 2, rtol=1e-9)
    left, values, right = np.linalg.svd(covariance)
    np.testing.assert_allclose(own.singular_value, values)
    for r in range(1, 5):
        for vectors, image, overlap in ((left, query.T @ u, own.query_overlap), (right.T, key.T @ v, own.key_overlap)):
            space = image[:, :r] @ np.linalg.pinv(image[:, :r])
            projected = np.linalg.norm(space @ vectors[:, :r]) ** 2 / r
            np.testing.assert_allclose(overlap[r - 1], projected, rtol=1e-9)
    assert own.query_overlap[-1] == pytest.approx(1)


def test_overlap_of_random_covariances_is_that_of_chance():
    """2000 random heads: the mean overlap is r / d, to five standard errors."""
    rng = np.random.default_rng(0)
    covariance, query, key = rng.standard_normal((3, 2000, 5, 5))
    own = contrast_of_modes(covariance, query, key, np.ones((2000, 5)))
    for overlap in (own.query_overlap, own.key_overlap):
        error = overlap.std(0) / np.sqrt(2000)
        assert (np.abs(overlap.mean(0) - own.chance) <= 5 * error + 1e-9).all()
