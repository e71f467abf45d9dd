"""Training with rotary positions: what a constraint then applies to, what the metrics say, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import qkjax
from qkjax.train.config import ROTARY, TrainConfig, from_dict, vit_config
from qkjax.train.model import initial, plain
from qkjax.train.penalty import penalty
from qkjax.train.positions import constrained_factor, interaction_measures
from qkjax.train.records import read_metrics
from qkjax.train.run import train
from qkjax.vit.config import ViTConfig
from qkjax.vit.tree import query_key_kernels

GRID = (3, 5)
ROPE = ViTConfig(16, 2, 2, 8, 16, (2, 2), channels=1, grid=GRID, posemb="none", rotary=ROTARY, classes=3)
SHORT = TrainConfig(width=16, depth=2, heads=2, mlp_dim=16, steps=4, every=4, warmup=1, batch=8)


def mean_by_brute_force(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Mbar of one head in float64: the mean over all pairs of places of Wq R(p_i) R(p_j)^T Wk^T."""
    count = query.shape[1] // 4
    frequencies = ROTARY.temperature ** -(np.arange(count) / count)
    places = [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]
    turns = []
    for row, column in places:
        turn = np.zeros((query.shape[1],) * 2)
        for plane, angle in enumerate([*row * frequencies, *column * frequencies]):  # interleaved pairs of columns
            cos, sin, first = np.cos(angle), np.sin(angle), 2 * plane
            turn[first : first + 2, first : first + 2] = [[cos, sin], [-sin, cos]]
        turns.append(turn)
    mean = np.mean([a @ b.T for a in turns for b in turns], axis=0)
    return query.astype(np.float64) @ mean @ key.astype(np.float64).T


def kernels(constraint: str, constrained: str):
    """Parameters moved from their initial values, some of which commute with every rotation, and their kernels."""
    names, rng = (constraint,) * ROPE.depth, np.random.default_rng(0)
    params = initial(jax.random.key(0), ROPE, names, constrained=constrained)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    return params, query_key_kernels(plain(params, ROPE, names, constrained))


@pytest.mark.parametrize("constrained", ["same-place", "mean"])
@pytest.mark.parametrize("constraint", ["antisymmetric", "symmetric", "tied"])
def test_the_constraint_holds_for_the_stated_interaction(constraint, constrained):
    """In float32, the entries of M are about 1; a violated constraint differs by more than 0.01."""
    _, (query, key) = kernels(constraint, constrained)
    sign = -1 if constraint == "antisymmetric" else 1
    same, mean = query[0, :, 0] @ key[0, :, 0].T, mean_by_brute_force(query[0, :, 0], key[0, :, 0])
    error = {"same-place": abs(same - sign * same.T).max(), "mean": abs(mean - sign * mean.T).max()}
    assert error.pop(constrained) < 1e-5
    other = next(iter(error.values()))
    assert other < 1e-5 if constraint == "tied" else other > 1e-2


@pytest.mark.parametrize("constrained", ["same-place", "mean"])
def test_start_from_kernels(constrained):
    """Without a constraint, training starts from the kernels that are given, whatever the constraint applies to."""
    tree = plain(kernels("free", "same-place")[0], ROPE, ("free", "free"))
    params = initial(jax.random.key(1), ROPE, ("free", "free"), tree, constrained=constrained)
    again = plain(params, ROPE, ("free", "free"), constrained)
    for ours, given in zip(query_key_kernels(again), query_key_kernels(tree), strict=True):
        np.testing.assert_allclose(ours, given, atol=1e-6)


def test_measures_are_those_of_dense_matrices():
    """The weighted cosine is tr(M) / ||M||_nuclear, here from numpy's dense SVD in float64; float32 gives 1e-5."""
    params, (query, key) = kernels("free", "same-place")
    measures = interaction_measures(plain(params, ROPE, ("free", "free")), ROPE)
    dense = {
        "weighted_cosine": mean_by_brute_force,
        "same_place_cosine": lambda q, k: q.astype(np.float64) @ k.T.astype(np.float64),
    }
    for name, matrix in dense.items():
        for layer in range(ROPE.depth):
            heads = [matrix(query[layer, :, head], key[layer, :, head]) for head in range(ROPE.heads)]
            wanted = np.mean([np.trace(m) / np.linalg.svd(m, compute_uv=False).sum() for m in heads])
            assert measures[name][layer] == pytest.approx(wanted, abs=1e-5), name
    assert all(0 < share < 1 for share in measures["place_share"])
    assert interaction_measures(params_without_rotation(), replace(ROPE, rotary=None)).keys() == {"weighted_cosine"}


def params_without_rotation():
    return plain(kernels("free", "same-place")[0], ROPE, ("free", "free"))


def test_the_penalty_acts_on_the_mean():
    _, (query, key) = kernels("free", "same-place")
    tree = params_without_rotation()
    for constrained, matrix in (("same-place", lambda q, k: q @ k.T), ("mean", mean_by_brute_force)):
        heads = [matrix(query[1, :, head], key[1, :, head]) for head in range(ROPE.heads)]
        cosine = np.mean([np.trace(m) / np.linalg.svd(m, compute_uv=False).sum() for m in heads])
        value = penalty(tree, {1: 0.5}, constrained_factor(ROPE, constrained))
        assert float(value) == pytest.approx((cosine - 0.5) ** 2, abs=1e-5)


def test_planes_that_cancel_in_the_mean_are_refused():
    centred = replace(ROPE, grid=(4, 4), rotary=qkjax.Rotary(100.0, "centred"))
    with pytest.raises(qkjax.QkjaxError, match=r"constrained='mean': 4 of 8 columns of a head cancel"):
        constrained_factor(centred, "mean")
    assert constrained_factor(centred, "same-place") is None


def test_a_run(tmp_path):
    """The exported model has the positions of the run, and its measures are those of the last line of metrics."""
    config = replace(SHORT, positions="rope", constraint="symmetric", constrained="mean")
    last = train(config, tmp_path / "run")
    checkpoint = qkjax.load(tmp_path / "run")
    assert checkpoint.config.rotary == ROTARY
    assert checkpoint.config.posemb == "none"
    measures = interaction_measures(checkpoint.params, checkpoint.config)
    assert {name: last[name] for name in measures} == measures
    line = read_metrics(tmp_path / "run" / "metrics.jsonl", config)[-1]
    assert line["place_share"] == measures["place_share"]
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(text.replace("place_share", "place") + "\n{}")
    with pytest.raises(qkjax.QkjaxError, match="place_share is missing"):
        read_metrics(tmp_path / "run" / "metrics.jsonl", config)


def test_settings():
    assert from_dict({"posemb": "learn"}) == TrainConfig()
    assert from_dict({"posemb": "sincos2d"}).positions == "sincos2d"
    both = vit_config(replace(SHORT, positions="rope+learned"), (8, 8, 1), 10)
    assert (both.rotary, both.posemb) == (ROTARY, "learn")
    with pytest.raises(qkjax.QkjaxError, match="multiple of 4 heads for rotary positions"):
        replace(SHORT, width=12, positions="rope").checked()
    with pytest.raises(qkjax.QkjaxError, match="do not set positions"):
        replace(SHORT, start="x", positions="rope").checked()
    with pytest.raises(qkjax.QkjaxError, match=r"positions='alibi': expected learned or sincos2d"):
        from_dict({"positions": "alibi"})
