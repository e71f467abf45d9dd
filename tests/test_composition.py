"""Output-value modes and composition against dense matrices in float64, and chance against simulated rotations."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr
from commands import command
from scipy.stats import ortho_group

import qkjax
from conftest import DATA
from qkjax.analyses.composition.describe import describe
from qkjax.analyses.composition.tables import PAIR, is_later
from qkjax.interaction.composition import chance_moments, compose, largest_cosine
from qkjax.interaction.modes import Modes, decompose, require_plain
from qkjax.vit.model import forward
from qkjax.vit.output_value import output_value
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.preprocessing import from_architecture

KINDS = {
    "plain": {},
    "layer scale": {"layer_scale": True, "class_token": True, "pool": "tok"},
    "RMSNorm": {"norm": "rms"},
    "rotary": {"posemb": "none", "grid": None, "rotary": qkjax.Rotary(100.0)},
}


def checkpoint_of(kind: str, **more) -> Checkpoint:
    """Random parameters that are all moved away from their initial values, so that scales and biases matter."""
    config = qkjax.ViTConfig(24, 3, 2, 8, 40, (8, 8), **{"grid": (3, 3), **KINDS[kind], **more})
    params = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 24, 24, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), params)
    return Checkpoint("random", config, params, "random.npz", from_architecture(config))


def dense(parts, query_key, fold: bool) -> tuple[np.ndarray, np.ndarray]:
    """Wv Wo and Wq Wk^T of all heads in float64, as dense matrices that act on normalised tokens, or without norm.

    C is the matrix that removes the mean of a token.
    """
    embed = parts.norm_scale.shape[1]
    center = np.eye(embed) - fold * parts.norm_centers / embed
    scale = parts.norm_scale if fold else np.ones_like(parts.norm_scale)
    before = np.einsum("ab,lb->lab", center, scale.astype(np.float64))
    value, output, query, key = (
        x.astype(np.float64)
        for x in (parts.value_kernel, parts.output_kernel, query_key.query_kernel, query_key.key_kernel)
    )
    written = np.einsum("lab,lbhk,lhkd,de->lhae", before, value, output, center)
    return written, np.einsum("lab,lbhk,lchk,ldc->lhad", before, query, key, before)


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_linear_in_weighted_values(kind):
    """sum_h weighted_value Wo is what attention adds to the residual stream, up to the bias: to 1e-5 in float32."""
    checkpoint = checkpoint_of(kind)
    images = np.random.default_rng(1).standard_normal((2, 24, 24, 3)).astype(np.float32)
    model = qkjax.ViT(checkpoint.config)
    _, seen = forward(model, checkpoint.params, images, ("weighted_value",))
    _, out = model.apply({"params": checkpoint.params}, images)
    parts = output_value(checkpoint.params)
    for layer in range(3):
        written = np.einsum("bnhk,hkd->bnd", seen["weighted_value"][layer], parts.output_kernel[layer])
        rest = out["encoder"][f"block{layer:02d}"]["sa"] - written
        np.testing.assert_allclose(rest, np.broadcast_to(rest[:1, :1], rest.shape), atol=2e-5)
        assert np.abs(rest).max() > 0.1  # the bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", [False, True])
def test_modes_are_those_of_the_dense_matrix(kind, fold):
    """Wv Wo = sum s u v^T, with s of a dense SVD in float64, to 1e-6 of the largest s: modes are stored as float32."""
    checkpoint = checkpoint_of(kind)
    parts = output_value(checkpoint.params)
    frame = {"fold_scale": fold, "center": fold and parts.norm_centers}
    modes = qkjax.output_value_modes(checkpoint, **frame)
    u, s, v = (np.asarray(x, np.float64) for x in modes)
    matrix, _ = dense(parts, qkjax.query_key(checkpoint.params), fold)
    largest = s[..., :1, None]
    np.testing.assert_allclose(np.einsum("lhdn,lhn,lhen->lhde", u, s, v) / largest, matrix / largest, atol=1e-6)
    np.testing.assert_allclose(s, np.linalg.svd(matrix, compute_uv=False)[..., :8], rtol=1e-6, atol=1e-6 * s.max())
    assert np.isfinite(qkjax.measure(modes).weighted_cosine).all()
    assert str(modes.frame).startswith("output_value")
    with pytest.raises(qkjax.QkjaxError, match="frame output_value"):
        require_plain(modes, "a function")


@pytest.mark.parametrize("kind", ["plain", "layer scale", "RMSNorm"])
@pytest.mark.parametrize("fold", [False, True])
def test_composition_is_that_of_dense_matrices(kind, fold):
    """Every pair of heads and every side, against products of dense float64 matrices, to 1e-5 (modes are float32)."""
    checkpoint = checkpoint_of(kind)
    result = qkjax.composition(checkpoint, fold_norm=fold)
    written, read = dense(output_value(checkpoint.params), qkjax.query_key(checkpoint.params), fold)
    norm = np.linalg.norm
    for a in np.ndindex(3, 2):
        for b in np.ndindex(3, 2):
            for side, matrix in (("query", read[b]), ("key", read[b].T), ("value", written[b])):
                wanted = norm(written[a] @ matrix) / norm(written[a]) / norm(matrix)
                own = result.sel(side=side)[dict(zip(PAIR, a + b, strict=True))]
                np.testing.assert_allclose(own.score, wanted, atol=1e-5)
                _, s, v = np.linalg.svd(written[a])
                w, t, _ = np.linalg.svd(matrix)
                terms = (s[:, None] * t * (v @ w)) ** 2
                np.testing.assert_allclose(own.mode_share, terms.max() / terms.sum(), atol=1e-4)
                place = int(own.from_mode), int(own.to_mode)
                np.testing.assert_allclose(terms[place], terms.max(), rtol=1e-3)
                np.testing.assert_allclose(own.mode_cosine, abs(v @ w)[place], atol=1e-4)


@pytest.mark.parametrize("spectra", [(np.ones(4), np.ones(5)), (2.0 ** -np.arange(6), [1, 0.1, 0.1]), ([1], [1, 1])])
def test_chance_is_that_of_random_rotations(spectra):
    """20,000 random rotations: the mean to 5 standard errors, the spread to 5%, and the 95% quantile to 1%."""
    count, n = 20_000, 12
    shares = [np.asarray(s, np.float64) ** 2 / np.sum(np.square(s)) for s in spectra]
    rotations = ortho_group(n, seed=0).rvs(count)[:, : len(shares[0]), : len(shares[1])]
    square = np.einsum("a,cab,b->c", shares[0], rotations**2, shares[1])
    mean, deviation = chance_moments(*((x**2).sum(keepdims=True) for x in shares), n)
    assert abs(square.mean() - mean) < 5 * square.std() / np.sqrt(count)
    np.testing.assert_allclose(square.std(), deviation.item(), rtol=0.05)
    directions = [np.eye(n, len(s))[None, None] for s in shares]
    strengths = [np.asarray(s, np.float64)[None, None] for s in spectra]
    own = compose(directions[0], strengths[0], directions[1], strengths[1], n)
    assert 0.94 < (square < own.chance.item() ** 2).mean() < 0.96
    np.testing.assert_allclose(own.deviation.item(), (own.score.item() ** 2 - mean) / deviation.item(), rtol=1e-4)


def test_composition_of_matrices_that_cannot_be_rotated_has_no_spread():
    """A full set of directions with equal strengths reads everything, whatever its rotation."""
    directions = np.eye(4)[None, None]
    own = compose(directions, np.ones((1, 1, 4)), directions, np.ones((1, 1, 4)), 4)
    np.testing.assert_allclose([own.score.item(), own.chance.item()], 0.5, rtol=1e-6)


def test_largest_cosine_bounds_random_directions():
    """At most 5% of 1000 sets of 200 pairs of random directions exceed the bound, up to 3 standard errors."""
    vectors = np.random.default_rng(0).standard_normal((2, 1000, 200, 10))
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    above = (np.abs((unit[0] * unit[1]).sum(-1)).max(-1) > largest_cosine(10, 200)).mean()
    assert 0.02 < above < 0.07


def test_a_head_that_is_zero_has_no_composition():
    u, s, v = decompose(*np.random.default_rng(0).standard_normal((2, 1, 12, 2, 4)))
    s = np.asarray(s) * np.array([[[0], [1]]])
    own = compose(v, s, u, s, 12)
    assert np.isnan(own.score[0, 0]).all() and np.isfinite(own.score[0, 1, 0, 1])


def test_pairs_that_cannot_compose_are_a_control():
    result = qkjax.composition(checkpoint_of("plain"))
    later = is_later(result)
    assert later.sum() == 3 * 2 * 2 and later[0, 0, 1, 1] and not later[1, 0, 1, 1] and not later[2, 0, 1, 0]
    written = describe(result)
    assert {row["pairs"] for row in written.rows} == {12} and {row["pairs_control"] for row in written.rows} == {24}
    assert all(row["from_layer"] < row["to_layer"] for row in written.tables["pairs"])
    assert len(written.tables["layers"]) == 3 * 9
    for side in result.side.values:
        scores = result.score.sel(side=side).values[later]
        own = [row["score"] for row in written.tables["pairs"] if row["side"] == side]
        np.testing.assert_array_equal(own, np.sort(scores)[::-1])


@pytest.mark.parametrize("more", [{"depth": 1}, {"rotary": qkjax.Rotary(100.0), "posemb": "none", "grid": None}])
def test_other_models_have_a_composition(more):
    base = checkpoint_of("rotary" if "rotary" in more else "plain")
    if "depth" in more:
        params = {**base.params, "Transformer": dict(base.params["Transformer"])}
        for layer in (1, 2):
            del params["Transformer"][f"encoderblock_{layer}"]
        base = replace(base, params=params, config=replace(base.config, depth=1))
    result = qkjax.composition(base)
    written = describe(result)
    assert np.isfinite(result.score).all()
    assert ("no pair of heads" in result.attrs["summary"]) == ("depth" in more)
    assert len(written.figures) == 2 and all(draw() for draw in written.figures.values())
    assert ("modes" in result.attrs) == ("rotary" in more)


def test_kernels_that_are_too_large():
    checkpoint = checkpoint_of("plain")
    block = checkpoint.params["Transformer"]["encoderblock_1"]["MultiHeadDotProductAttention_0"]
    block["out"]["kernel"] = np.full_like(block["out"]["kernel"], np.inf)
    with pytest.raises(qkjax.QkjaxError, match="its value and output kernels are too large"):
        qkjax.composition(checkpoint)


def test_refusals():
    with pytest.raises(qkjax.QkjaxError, match="norm between the attention-weighted values and the output"):
        qkjax.output_value_modes(checkpoint_of("plain", inner_norms=True))
    with pytest.raises(qkjax.QkjaxError, match="not the parameter tree"):
        output_value({"Transformer": {}})
    with pytest.raises(qkjax.QkjaxError, match="center=True needs fold_scale=True"):
        qkjax.output_value_modes(checkpoint_of("plain"), center=True)
    with pytest.raises(qkjax.QkjaxError, match="RMSNorm"):
        qkjax.output_value_modes(checkpoint_of("RMSNorm"), fold_scale=True, center=True)


def test_the_command_writes_what_the_function_returns(tmp_path, monkeypatch, capsys):
    done = command(monkeypatch, capsys, "composition", DATA / "a.npz", "--out", tmp_path)
    assert "the strongest pairs" in done.out and "next: qkjax" in done.err
    written = qkjax.composition(qkjax.load(DATA / "a.npz"))
    stored = xr.load_dataset(tmp_path / "composition.nc")
    for name in written.data_vars:
        np.testing.assert_array_equal(stored[name], written[name])
    assert {path.name for path in tmp_path.iterdir()} >= {
        "sides.csv", "layers.csv", "pairs.csv", "composition_by_layer.png", "composition_of_pairs.pdf",
    }  # fmt: skip


def test_modes_type_is_that_of_query_key_modes():
    assert isinstance(qkjax.output_value_modes(checkpoint_of("plain")), Modes)
