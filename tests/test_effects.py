"""Distances between a model and its edited self, against scipy and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from qkjax.activations.attention import entropy, jensen_shannon
from qkjax.activations.representation import cosine, kullback_leibler, linear_cka


@pytest.mark.gpu
def test_attention_distances_are_scipy_s():
    rng = np.random.default_rng(0)
    first, second = (rng.dirichlet(np.ones(9) * 0.3, size=(2, 5)).astype(np.float32) for _ in range(2))
    found = jensen_shannon(jnp.asarray(first), jnp.asarray(second))
    wanted = [
        np.mean([scipy.spatial.distance.jensenshannon(p, q, base=2) ** 2 for p, q in zip(f, s, strict=True)])
        for f, s in zip(first.astype(float), second.astype(float), strict=True)
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    wanted = [np.mean([scipy.stats.entropy(p, base=2) for p in f]) for f in first.astype(float)]
    np.testing.assert_allclose(entropy(jnp.asarray(first)), wanted, atol=1e-5)
    one, other = jnp.eye(4)[None, :1], jnp.eye(4)[None, 1:2]
    assert float(jensen_shannon(one, other)[0]) == pytest.approx(1)
    assert float(jensen_shannon(one, one)[0]) == 0
    assert float(entropy(jnp.full((1, 1, 8), 1 / 8))[0]) == pytest.approx(3)


@pytest.mark.gpu
def test_output_distances():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True) for x in (a, b))
    wanted = [scipy.stats.entropy(x, y, base=2) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(kullback_leibler(jnp.asarray(a), jnp.asarray(b)), wanted, rtol=1e-4)
    wanted = [1 - scipy.spatial.distance.cosine(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosine(jnp.asarray(a), jnp.asarray(b)), wanted, rtol=1e-5)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0].astype(np.float32)
    assert float(linear_cka(jnp.asarray(a), jnp.asarray(3 * a @ turn + 1))) == pytest.approx(1, abs=1e-5)
    centred = [x.astype(float) - x.mean(0) for x in (a, b)]
    grams = [x @ x.T for x in centred]
    wanted = (grams[0] * grams[1]).sum() / (np.linalg.norm(grams[0]) * np.linalg.norm(grams[1]))
    assert float(linear_cka(jnp.asarray(a), jnp.asarray(b))) == pytest.approx(wanted, rel=1e-4)
