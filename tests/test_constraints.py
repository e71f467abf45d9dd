"""Constraints hold exactly whatever the parameters, as the ordinary decomposition of the plain kernels shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from conftest import dense_svd
from qkjax.train.constraints import CONSTRAINTS, constraint, schedule
from qkjax.train.nearest import nearest_parameters

SHAPE = (48, 4, 12)
NAMES = (*CONSTRAINTS, "low_rank(5)")


def perturbed(name: str, seed: int = 0) -> dict:
    """Parameters as after some training: far from where they began."""
    rng = np.random.default_rng(seed)
    parameters = constraint(name).init(jax.random.key(seed), SHAPE)
    return {k: jnp.asarray(v + 0.5 * rng.standard_normal(v.shape), jnp.float32) for k, v in parameters.items()}


def kernels(name: str, parameters: dict) -> tuple[np.ndarray, np.ndarray]:
    query, key = jax.jit(lambda p: constraint(name).kernels(p, SHAPE))(parameters)
    assert query.shape == key.shape == SHAPE
    return np.asarray(query)[None], np.asarray(key)[None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_decomposition_shows_the_constraint(name, seed):
    pair = kernels(name, perturbed(name, seed))
    modes = qkjax.decompose(*pair)
    metrics = qkjax.measure(modes)
    s, cosine = np.asarray(modes.s)[0], np.asarray(metrics.cosine)[0]
    strong = s > 1e-3 * s[:, :1]
    wanted = {"tied": 1, "repulsive": -1, "antisymmetric": 0, "orthogonal": 0}
    if name in wanted:
        np.testing.assert_allclose(cosine[strong], wanted[name], atol=1e-4)
    if name in ("symmetric", "diagonal", "identity"):
        clear = strong & ~np.asarray(metrics.degenerate)[0]
        np.testing.assert_allclose(np.abs(cosine[clear]), 1, atol=1e-4)
        np.testing.assert_allclose(metrics.symmetric_share, 1, atol=1e-5)
    if name == "antisymmetric":
        np.testing.assert_allclose(metrics.symmetric_share, 0, atol=1e-5)
    if name == "orthogonal":
        assert (np.asarray(metrics.symmetric_share) > 0.1).all(), "not antisymmetric"
    if name == "low_rank(5)":
        assert (s[:, 5:] < 1e-6 * s[:, :1]).all()
        assert (s[:, 4] > 1e-3 * s[:, 0]).all()
    if name in ("flat", "identity"):
        np.testing.assert_allclose(s, s[:, :1] * np.ones(12), rtol=1e-5)
    if name in ("diagonal", "identity"):
        m = np.einsum("dhk,ehk->hde", pair[0][0], pair[1][0])
        assert not m[:, ~np.eye(48, dtype=bool)].any()
        assert (np.count_nonzero(m, axis=(1, 2)) == 12).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_to_every_parameter_that_is_free(name):
    """Of a loss that depends on all of M; finite everywhere, and nowhere only zeros but for `frozen`."""
    target = jnp.asarray(np.random.default_rng(3).standard_normal((4, 48, 48)), jnp.float32)

    def loss(parameters):
        query, key = constraint(name).kernels(parameters, SHAPE)
        return ((jnp.einsum("dhk,ehk->hde", query, key) - target) ** 2).sum()

    for part, gradient in jax.jit(jax.grad(loss))(perturbed(name)).items():
        assert jnp.isfinite(gradient).all(), part
        assert bool(jnp.abs(gradient).reshape(*gradient.shape[:1], -1).max() > 0) == (name != "frozen"), part


@pytest.mark.parametrize("name", NAMES)
def test_initial_logits_are_of_the_size_of_free_ones(name):
    """So that conditions start alike: ||M||_F within a factor of three of the free one's."""
    norms = [
        np.linalg.norm(qkjax.decompose(*kernels(n, constraint(n).init(jax.random.key(1), SHAPE))).s)
        for n in ("free", name)
    ]
    assert 1 / 3 < norms[1] / norms[0] < 3


def m_of(pair) -> np.ndarray:
    return np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in pair))[0]


def plain_nearest(name: str, m: np.ndarray) -> np.ndarray:
    """Of one head's dense M, in float64: what the Frobenius norm's nearest is known to be."""
    rank = 12
    if name in ("tied", "repulsive", "symmetric"):
        values, vectors = np.linalg.eigh((m + m.T) / 2)
        sign = {"tied": 1, "repulsive": -1}.get(name)
        size = abs(values) if sign is None else np.maximum(sign * values, 0)
        best = np.argsort(-size)[:rank]
        kept = np.where(size[best] > 0, values[best], 0)
        return (vectors[:, best] * kept) @ vectors[:, best].T
    if name == "antisymmetric":
        u, s, vt = np.linalg.svd((m - m.T) / 2)
        return (u[:, :rank] * s[:rank]) @ vt[:rank]
    u, s, vt = np.linalg.svd(m)
    if name == "flat":
        return s[:rank].mean() * u[:, :rank] @ vt[:rank]
    if name == "low_rank(5)":
        return (u[:, :5] * s[:5]) @ vt[:5]
    return m


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("orthogonal", "diagonal", "identity")])
def test_start_from_given_kernels_is_the_nearest(name):
    given = np.random.default_rng(4).standard_normal((2, 1, *SHAPE)).astype(np.float32)
    ours = m_of(kernels(name, nearest_parameters(name, given[0][0], given[1][0])))
    for head, m in enumerate(m_of(given)):
        np.testing.assert_allclose(ours[head], plain_nearest(name, m), atol=3e-5 * abs(m).max())


@pytest.mark.parametrize("name", NAMES)
def test_start_from_kernels_that_satisfy_it_changes_nothing(name):
    pair = kernels(name, perturbed(name, 5))
    again = kernels(name, nearest_parameters(name, pair[0][0], pair[1][0]))
    m = m_of(pair)
    np.testing.assert_allclose(m_of(again), m, atol=3e-5 * abs(m).max())
    assert dense_svd(*again)[1].shape == (1, 4, 48)


def test_schedules():
    assert schedule("tied", 3) == ("tied",) * 3
    assert schedule("0-1:tied 2:low_rank(8) 3-3:free", 4) == ("tied", "tied", "low_rank(8)", "free")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tide", "no constraint 'tide' .nearest: 'tied'."),
        ("low_rank(0)", "no constraint 'low_rank.0.'"),
        ("0-1:tied", "leaves layer 2 without a constraint; say free for none"),
        ("0-1:tied 1-3:free", "layer 1 .* has two constraints"),
        ("0-4:tied", "layer 4 .* is not there: the model has 4, from 0"),
        ("0-3=tied 1:free", "'0-3=tied' is no part of a schedule"),
    ],
)
def test_schedules_that_cannot_be(text, says):
    with pytest.raises(qkjax.QkjaxError, match=says):
        schedule(text, 4)
    with pytest.raises(qkjax.QkjaxError, match=r"low_rank\(13\) is more than the 12 columns"):
        constraint("low_rank(13)").init(jax.random.key(0), SHAPE)
