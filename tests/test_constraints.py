"""Constraints hold exactly whatever the parameters, as the ordinary decomposition of the plain kernels shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import qkjax
from conftest import dense_svd
from qkjax.train.constraints import CONSTRAINTS, constraint, example_name, schedule
from qkjax.train.constraints.record import Argument, Constraint
from qkjax.train.constraints.registry import _merge
from qkjax.train.model import initial, plain
from qkjax.train.nearest import nearest_parameters
from qkjax.train.penalty import penalty, weighted_cosine
from qkjax.train.start import mimetic
from qkjax.vit.tree import query_key_kernels

SHAPE = (48, 4, 12)
NAMES = tuple("low_rank(5)" if name == "low_rank" else example_name(name) for name in CONSTRAINTS)


def perturbed(name: str, seed: int = 0) -> dict:
    """Parameters as after some training: far from where they began."""
    rng = np.random.default_rng(seed)
    parameters = constraint(name).init(jax.random.key(seed), SHAPE)
    return {k: jnp.asarray(v + 0.5 * rng.standard_normal(v.shape), jnp.float32) for k, v in parameters.items()}


def kernels(name: str, parameters: dict) -> tuple[np.ndarray, np.ndarray]:
    query, key = jax.jit(lambda p: constraint(name).kernels(p, SHAPE))(parameters)
    assert query.shape == key.shape == SHAPE
    return np.asarray(query)[None], np.asarray(key)[None]


@pytest.mark.gpu
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
        ("tide", "unknown constraint 'tide' .nearest: 'tied'."),
        ("tied(3)", "unknown constraint 'tied.3.'"),
        ("low_rank", "unknown constraint 'low_rank' .nearest: 'low_rank.8.'."),
        ("low_rank(0)", "the rank of low_rank.r. is 0: expected a whole number of at least 1"),
        ("low_rank(2.5)", "the rank of low_rank.r. is '2.5': expected a whole number of at least 1"),
        ("pull(2)", "the cosine of pull.c. is 2: expected a number from -1 to 1"),
        ("0-1:tied", "names no constraint for layer 2: .* add 2:free"),
        ("0-1:tied 1-3:free", "assigns two constraints to layer 1"),
        ("0-4:tied", "names layer 4: expected layers from 0 to 3, because the model has 4 layers"),
        ("0-3=tied 1:free", "'0-3=tied' is not a valid part of a schedule"),
    ],
)
def test_invalid_schedules(text, says):
    with pytest.raises(qkjax.QkjaxError, match=says):
        schedule(text, 4)


def test_ranks_beyond_the_columns_of_a_head():
    vit = qkjax.ViTConfig(width=24, depth=1, heads=2, head_dim=12, mlp_dim=24, patch_size=(4, 4), grid=(2, 2))
    with pytest.raises(qkjax.QkjaxError, match=r"rank of low_rank\(r\) is 13: expected a whole number from 1 to 12"):
        initial(jax.random.key(0), vit, ("low_rank(13)",))


COMPLETE = {field.name: getattr(CONSTRAINTS["free"], field.name) for field in dataclasses.fields(Constraint)}


@pytest.mark.parametrize("part", COMPLETE)
def test_an_entry_that_lacks_a_part_fails_when_it_is_made(part):
    """Entries are made when their module is imported."""
    with pytest.raises(TypeError, match=f"missing .* argument: '{part}'"):
        Constraint(**{name: value for name, value in COMPLETE.items() if name != part})


def test_an_entry_with_a_wrong_part_fails_when_it_is_made():
    for part in set(COMPLETE) - {"target", "argument"}:
        with pytest.raises((TypeError, TypeCheckError), match=part):
            Constraint(**{**COMPLETE, part: None})
    argument = Argument(meaning="the rank", type=int, low=1, high=None, example=2)
    with pytest.raises(TypeError, match="kernels of the constraint 'no constraint': too many positional arguments"):
        Constraint(**{**COMPLETE, "argument": argument, "init": lambda key, shape, rank: {}})
    with pytest.raises(TypeError, match="nearest of the constraint 'no constraint': missing a required argument"):
        Constraint(**{**COMPLETE, "nearest": lambda query, key: {}})
    with pytest.raises(TypeError, match="two constraints have the name free"):
        _merge(CONSTRAINTS, {"free": CONSTRAINTS["tied"]})


@pytest.mark.parametrize("name", NAMES)
def test_entries_name_the_parameters_that_they_draw(name):
    """Also where their heads are: on that axis the arrays are as long as there are heads."""
    drawn = constraint(name).init(jax.random.key(0), SHAPE)
    kinds = constraint(name).parameters
    assert set(drawn) == set(kinds)
    assert all(value.shape[kinds[part].heads_axis] == SHAPE[1] for part, value in drawn.items())


@pytest.mark.parametrize(("was", "name"), [("tied", "repulsive"), ("repulsive", "tied"), ("tied", "antisymmetric")])
def test_starts_whose_nearest_interaction_is_nothing_can_learn(was, name):
    """Two factors of 0 would stay so for ever."""
    start = nearest_parameters(name, *(k[0] for k in kernels(was, perturbed(was))))
    weights = np.random.default_rng(0).standard_normal((48, 4, 48))

    def score(parameters):
        query, key = constraint(name).kernels(parameters, SHAPE)
        return jnp.einsum("dhk,ehk,dhe->", query, key, weights)

    slopes = jax.grad(score)({k: jnp.asarray(v) for k, v in start.items()})
    assert all(np.abs(np.moveaxis(np.asarray(slopes["query"]), 1, 0)[h]).max() > 1e-6 for h in range(4))
    m = np.einsum("dhk,ehk->hde", *constraint(name).kernels({k: jnp.asarray(v) for k, v in start.items()}, SHAPE))
    assert np.abs(m).max() < 1e-3, "as near to nothing as can learn"


@pytest.mark.gpu
def test_pull_is_what_measure_says_and_its_gradient_that_of_the_dense_svd():
    """Weighted cosine tr(M) / ||M||_nuclear: the value against `measure`, the gradient against finite differences of
    the float64 dense SVD along random directions."""
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((3, 24, 2, 6)) for _ in range(2))
    key = key + query  # cosines away from 0
    found = weighted_cosine(jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32))
    np.testing.assert_allclose(found, qkjax.measure(qkjax.decompose(query, key)).weighted_cosine, atol=1e-5)

    def dense(query, key):
        m = np.einsum("ldhk,lehk->lhde", query, key)
        return np.trace(m, axis1=2, axis2=3) / np.linalg.svd(m, compute_uv=False).sum(-1)

    slopes = jax.grad(lambda q, k: weighted_cosine(q, k).sum(), argnums=(0, 1))(
        *(jnp.asarray(x, jnp.float32) for x in (query, key))
    )
    for _ in range(3):
        directions, step = [rng.standard_normal(query.shape) for _ in range(2)], 1e-5
        ends = [dense(query + t * directions[0], key + t * directions[1]).sum() for t in (step, -step)]
        along = sum((np.asarray(g, np.float64) * d).sum() for g, d in zip(slopes, directions, strict=True))
        assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-4)


def test_pull_is_the_squared_distance_of_the_layers_it_names():
    vit = qkjax.ViTConfig(width=24, depth=3, heads=2, head_dim=12, mlp_dim=24, patch_size=(4, 4), grid=(2, 2))
    tree = plain(initial(jax.random.key(0), vit, ("free", "tied", "free")), vit, ("free", "tied", "free"))
    cosines = qkjax.measure(qkjax.decompose(*query_key_kernels(tree))).weighted_cosine.mean(-1)
    wanted = ((float(cosines[0]) - 0.5) ** 2 + (1 + 1) ** 2) / 2
    assert float(penalty(tree, {0: 0.5, 1: -1.0})) == pytest.approx(wanted, abs=1e-4)
    assert schedule("0:pull(0.5) 1-2:pull(-1)", 3) == ("pull(0.5)", "pull(-1)", "pull(-1)")


def test_mimetic_kernels_look_as_they_should():
    """The best approximations of 0.7 Z + 0.7 I and 0.4 Z - 0.4 I: so the first is near its own diagonal, and what is
    left out are the singular values that numpy finds beyond the rank."""
    vit = qkjax.ViTConfig(width=48, depth=2, heads=4, head_dim=12, mlp_dim=24, patch_size=(4, 4), grid=(2, 2))
    drawn = plain(initial(jax.random.key(0), vit, ("free",) * 2), vit, ("free",) * 2)
    tree = mimetic(jax.random.key(1), drawn)
    attention = tree["Transformer"]["encoderblock_1"]["MultiHeadDotProductAttention_0"]
    kernels = {name: np.asarray(part["kernel"], np.float64) for name, part in attention.items()}
    mixed = np.einsum("dhk,hke->de", kernels["value"], kernels["out"])
    z = (mixed + 0.4 * np.eye(48)) / 0.4  # of full rank, so that Z can be told
    assert z.std() * np.sqrt(48) == pytest.approx(1, abs=0.1)
    assert abs(z.mean()) < 0.02
    m = np.einsum("dhk,ehk->hde", kernels["query"], kernels["key"])
    assert 0.1 < np.mean([np.trace(one) for one in m]) / 48 < 0.7
    metrics = qkjax.measure(qkjax.decompose(*query_key_kernels(tree)))
    assert (np.asarray(metrics.weighted_cosine) > 0.4).all(), "queries look for what is like them"
    np.testing.assert_array_equal(
        tree["Transformer"]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]["kernel"],
        drawn["Transformer"]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]["kernel"],
    )
