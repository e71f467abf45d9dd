"""Edited interactions are what float64 dense arithmetic says, in kernels of the shapes that any ViT has."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import qkjax
from conftest import dense_svd
from qkjax.analyses.edit import Edit, edit_with_notes, strength_of
from qkjax.analyses.edit import resolve as resolve_edit
from qkjax.images.preprocess import PRESETS
from qkjax.interaction.edit import EDITS, KEEP_KEYS, edit, factorise, within_modes
from qkjax.interaction.modes import decompose
from qkjax.interaction.select import select
from qkjax.interaction.svd.lapack import by_lapack
from qkjax.vit.model import forward
from qkjax.vit.tree import with_attention
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint

EMBED, COLUMNS = 24, 6


@pytest.fixture(scope="module")
def head():
    """Kernels (D, d) and query bias of one head, its modes, and M and w in float64."""
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((EMBED, COLUMNS)).astype(np.float32) for _ in range(2))
    bias = 3 * rng.standard_normal(COLUMNS).astype(np.float32)
    modes = decompose(query[None, :, None], key[None, :, None])
    u, s, v = (x[0, 0] for x in modes)
    m, w = query.astype(np.float64) @ key.T, key.astype(np.float64) @ bias
    return (u, s, v), m, w


def product(first, second) -> np.ndarray:
    """first @ second^T in float64; jax's own products in float32 are rounded to TF32 on a GPU."""
    return np.asarray(first, np.float64) @ np.asarray(second, np.float64).T


def dense(kind: str, m: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """M' by the dense float64 SVD."""
    u, s, vt = np.linalg.svd(m)
    u, s, v = u[:, :COLUMNS], s[:COLUMNS], vt[:COLUMNS].T
    if kind in ("symmetric", "antisymmetric"):
        return (m + m.T) / 2 if kind == "symmetric" else (m - m.T) / 2
    level = np.sqrt((s[chosen] ** 2).mean())
    new = {"drop": 0 * s, "flip": -s, "rotate": s, "equalize": level + 0 * s, "unbias": s}[kind]
    s = np.where(chosen, new, s)
    return (u * s) @ (np.where(chosen, u, v) if kind == "rotate" else v).T


@pytest.mark.gpu
@pytest.mark.parametrize("kind", EDITS)
def test_edited_interactions_are_those_of_dense_arithmetic(head, kind):
    modes, m, w = head
    chosen = np.array([True, False, True, True, False, False])
    factors = EDITS[kind](*modes, jnp.asarray(chosen, jnp.float32))
    wanted = dense(kind, m, chosen)
    np.testing.assert_allclose(product(*factors), wanted, atol=2e-5 * np.abs(m).max())
    wide = jax.jit(factorise, static_argnums=2)(factors, jnp.asarray(w, jnp.float32), 2 * COLUMNS + 1)
    narrow = jax.jit(factorise, static_argnums=2)(factors, jnp.asarray(w, jnp.float32), COLUMNS)
    for found in (wide, narrow):
        np.testing.assert_allclose(product(found.key_kernel, found.query_bias), w, atol=1e-4)
    np.testing.assert_allclose(product(wide.query_kernel, wide.key_kernel), wanted, atol=2e-5 * np.abs(m).max())
    assert float(wide.retained) == pytest.approx(1, abs=1e-5)
    error = np.linalg.norm(product(narrow.query_kernel, narrow.key_kernel) - wanted) ** 2 / np.linalg.norm(wanted) ** 2
    assert float(narrow.retained) == pytest.approx(1 - error, abs=1e-4)
    if kind in ("drop", "flip", "equalize", "unbias"):
        assert error < 1e-9
    else:  # what fits is as good as the best matrix of the rank that leaves room for w
        best = (np.linalg.svd(wanted, compute_uv=False)[COLUMNS - 1 :] ** 2).sum() / np.linalg.norm(wanted) ** 2
        assert error <= best + 1e-6


@pytest.mark.parametrize("kind", KEEP_KEYS)
def test_kernels_from_the_modes_are_those_of_a_factorisation(head, kind):
    """Without a second SVD, kernels represent the same interaction and key bias, to the rounding of float32."""
    modes, m, w = head
    factors = EDITS[kind](*modes, jnp.asarray([1, 0, 0.5, 1, 0, 0], jnp.float32))
    for columns in (COLUMNS, 2 * COLUMNS + 1):
        arguments = factors, jnp.asarray(w, jnp.float32), columns
        found, expected = within_modes(*arguments), factorise(*arguments)
        assert [x.shape for x in found] == [x.shape for x in expected]
        both = [product(x.query_kernel, x.key_kernel) for x in (found, expected)]
        np.testing.assert_allclose(*both, atol=2e-5 * np.abs(m).max())
        np.testing.assert_allclose(product(found.key_kernel, found.query_bias), w, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found.query_kernel), np.linalg.norm(expected.query_kernel), rtol=1e-4)


def test_nothing_chosen_is_nothing_changed(head):
    modes, m, w = head
    for kind in ("drop", "flip", "rotate", "equalize"):
        found = factorise(EDITS[kind](*modes, jnp.zeros(COLUMNS)), jnp.asarray(w, jnp.float32), COLUMNS)
        np.testing.assert_allclose(product(found.query_kernel, found.key_kernel), m, atol=2e-5 * np.abs(m).max())
        assert float(found.retained) == pytest.approx(1, abs=1e-5)


def test_all_dropped_leaves_the_bias_alone(head):
    modes, m, w = head
    for direction in (w, 0 * w):
        found = factorise(EDITS["drop"](*modes, jnp.ones(COLUMNS)), jnp.asarray(direction, jnp.float32), COLUMNS)
        assert not np.abs(product(found.query_kernel, found.key_kernel)).max() > 1e-6 * np.abs(m).max()
        np.testing.assert_allclose(product(found.key_kernel, found.query_bias), direction, atol=1e-4)
        assert all(np.isfinite(x).all() for x in found)


def test_flipping_twice_is_the_identity_and_rotated_modes_have_cosine_one(head):
    modes, m, _ = head
    weight = jnp.ones(COLUMNS)
    once = EDITS["flip"](*modes, weight)
    again = decompose(*(np.asarray(x)[None, :, None] for x in once))
    twice = EDITS["flip"](*(x[0, 0] for x in again), weight)
    np.testing.assert_allclose(product(*twice), m, atol=5e-5 * np.abs(m).max())
    u, _, v = dense_svd(*(np.asarray(x)[None, :, None] for x in EDITS["rotate"](*modes, weight)))
    np.testing.assert_allclose((u * v).sum(-2)[0, 0, :COLUMNS], 1, atol=1e-4)


@pytest.fixture(scope="module")
def model():
    """A small ViT with large query and key biases, its parts and modes."""
    config = qkjax.ViTConfig(
        width=24, depth=3, heads=4, head_dim=6, mlp_dim=48, patch_size=(8, 8), grid=(4, 4), pool="gap", classes=5
    )
    rng = np.random.default_rng(0)
    tree = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), tree)
    parts = qkjax.query_key(params)
    return config, params, parts, qkjax.decompose(*parts[:2])


def resolve(requested, parts, metrics):
    """The edit in the measure of the weights."""
    return resolve_edit(requested, metrics, {"strength": strength_of(parts, metrics)})


def lost_share(weights, s):
    """||M' - M||^2 / ||M||^2 if modes are dropped with these weights, in float64."""
    s, weights = np.asarray(s, np.float64), np.asarray(weights, np.float64)
    return ((s * (1 - np.sqrt(1 - weights))) ** 2).sum(-1) / (s**2).sum(-1)


def outputs(config, params, edited):
    new = {
        "query": {"kernel": edited.query_kernel, "bias": edited.query_bias},
        "key": {"kernel": edited.key_kernel, "bias": edited.key_bias},
    }
    images = np.random.default_rng(1).standard_normal((3, 32, 32, 3)).astype(np.float32)
    return forward(qkjax.ViT(config), with_attention(params, new), images, capture=("attention",))


@pytest.mark.gpu
def test_edits_of_nothing_leave_every_head_bit_for_bit(model):
    _, _, parts, modes = model
    edited = edit(parts, modes, "drop", np.zeros(modes.s.shape, np.float32))
    for was, now in zip((parts.query_kernel, parts.key_kernel, parts.query_bias, parts.key_bias), edited, strict=False):
        np.testing.assert_array_equal(was, now)


@pytest.mark.gpu
def test_kept_modes_are_the_model_and_dropped_ones_leave_the_bias(model):
    """All modes made anew: the model's outputs to 1e-5. None: attention is the softmax of the keys' bias term, and
    uniform without it."""
    config, params, parts, modes = model
    almost = np.zeros(modes.s.shape, np.float32) + 1e-12  # touches every head, and drops nothing of it
    logits, found = outputs(config, params, edit(parts, modes, "drop", almost))
    wanted, was = forward(
        qkjax.ViT(config), params, np.random.default_rng(1).standard_normal((3, 32, 32, 3)).astype(np.float32),
        capture=("attention", "norm"),
    )  # fmt: skip
    # On accelerators, products and Cholesky factors in float32 replace LAPACK: Wq Wk^T is then off by 2e-6 of its norm
    # (2e-7 with LAPACK). Attention logits are up to 22 here, and a softmax changes by at most a quarter of their error.
    np.testing.assert_allclose(found["attention"], was["attention"], atol=1e-5 if by_lapack() else 3e-5)
    np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())
    everything = np.ones(modes.s.shape, np.float32)
    _, without = outputs(config, params, edit(parts, modes, "drop", everything, key_bias=False))
    np.testing.assert_allclose(without["attention"], 1 / 16, atol=1e-6)
    _, biased = outputs(config, params, edit(parts, modes, "drop", everything))
    direction = np.einsum("dhk,hk->hd", parts.key_kernel[0], parts.query_bias[0])
    term = np.einsum("bnd,hd->bhn", was["norm"][0], direction) / np.sqrt(6)
    np.testing.assert_allclose(
        biased["attention"][0], np.repeat(jax.nn.softmax(term)[:, :, None], 16, axis=2), atol=1e-5
    )


@pytest.mark.gpu
def test_wider_kernels_hold_what_does_not_fit(model):
    """The symmetric part with its bias term needs 2 R + 1 columns: then it is exact."""
    _, _, parts, modes = model
    everything = np.ones(modes.s.shape, np.float32)
    narrow, wide = (edit(parts, modes, "symmetric", everything, columns=columns) for columns in (None, 13))
    assert float(wide.retained.min()) == pytest.approx(1, abs=1e-5)
    assert float(narrow.retained.max()) < 1
    m = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in parts[:2]))
    found = np.einsum("ldhk,lehk->lhde", wide.query_kernel, wide.key_kernel)
    np.testing.assert_allclose(found, (m + np.swapaxes(m, 2, 3)) / 2, atol=1e-5 * np.abs(m).max())


def test_selections_are_what_they_say(model):
    _, _, _, modes = model
    metrics = qkjax.measure(modes)
    cosine = np.asarray(metrics.cosine)
    np.testing.assert_array_equal(select("cosine>0.1", metrics), cosine > 0.1)
    found = select("cosine<=-0.05 layers=0-1 heads=1,3", metrics)
    np.testing.assert_array_equal(found[:2, [1, 3]], cosine[:2, [1, 3]] <= -0.05)
    assert not found[2].any()
    assert not found[:, [0, 2]].any()
    assert select("modes=0-2,5", metrics).sum() == 3 * 4 * 4
    assert select("all", metrics).all()
    for text, says in {
        "": "the selection is empty",
        "cosine=0.5": "'cosine=0.5' is not a valid term: expected for example 'cosine>0.5'",
        "layers=0-3": "'layers=0-3': expected numbers from 0 to 2, since the model has 3 layers",
        "modes=3-1": "'3-1' is not a valid range: pass the lower number first",
        "grouping=0.3 weakest=0.1": "'grouping=0.3' and 'weakest=0.1': expected at most one such term",
        "grouping=1.3": "'grouping=1.3': expected a share of a head from 0 to 1",
    }.items():
        with pytest.raises(qkjax.QkjaxError, match=says):
            select(text, metrics)


def test_shares_take_the_first_modes_in_order_and_keep_is_the_rest(model):
    """Against a plain loop over sorted modes in float64."""
    _, _, _, modes = model
    metrics = qkjax.measure(modes)
    cosine, s = (np.asarray(x, np.float64) for x in (metrics.cosine, modes.s))
    for text, order in {"grouping": -cosine, "contextual": cosine, "strongest": -s, "weakest": s}.items():
        found = select(f"{text}=0.37 cosine>-0.3", metrics)
        for head in np.ndindex(s.shape[:2]):
            wanted, left = np.zeros(s.shape[-1]), 0.37 * (s[head] ** 2).sum()
            for mode in np.argsort(order[head]):
                if cosine[head][mode] > -0.3:
                    wanted[mode] = min(1, left / s[head][mode] ** 2)
                    left -= wanted[mode] * s[head][mode] ** 2
            np.testing.assert_allclose(found[head], wanted, atol=1e-5)
        assert select(f"{text}=1", metrics).min() == 1
        assert not select(f"{text}=0", metrics).any()
    parts = model[2]
    m, kept, left = (
        np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in found[:2]))
        for found in (parts, *(edit(parts, modes, *resolve(Edit(k, "modes=0-1 cosine>0"), parts, metrics)[:2])
                               for k in ("keep", "drop")))
    )  # fmt: skip
    chosen = select("modes=0-1 cosine>0", metrics).any(-1) & ~select("modes=0-1 cosine>0", metrics).all(-1)
    np.testing.assert_allclose((kept + left)[chosen], m[chosen], atol=2e-5 * np.abs(m).max())  # added back
    some = select("modes=0-1 layers=1-", metrics)
    rest = select("modes=0-1 layers=1-", metrics, keep=True)
    np.testing.assert_array_equal(some + rest, np.broadcast_to([[[0]], [[1]], [[1]]], some.shape))
    np.testing.assert_array_equal(select("cosine>0.1 layers=2", metrics, keep=True)[2], cosine[2] <= 0.1)


def test_controls_of_whole_heads_are_as_strong_as_what_is_taken_away(model):
    """Symmetric and antisymmetric part against float64 dense M; the bias term against the spreads in docs."""
    _, _, parts, modes = model
    metrics = qkjax.measure(modes)
    m = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in parts[:2]))
    halves = {"symmetric": (m - np.swapaxes(m, 2, 3)) / 2, "antisymmetric": (m + np.swapaxes(m, 2, 3)) / 2}
    for kind, lost in halves.items():
        plan = resolve(Edit(kind, "layers=0,2", control=1), parts, metrics)
        assert plan.kind == "drop"
        wanted = (lost**2).sum((2, 3)) / (m**2).sum((2, 3))
        np.testing.assert_allclose(plan.share[[0, 2]], wanted[[0, 2]], atol=6e-5)  # rounded to four decimals
        np.testing.assert_allclose(lost_share(plan.weights, modes.s), plan.share, atol=1e-6)
        assert not plan.weights[1].any()
    plan = resolve(Edit("unbias", control=1), parts, metrics)
    centred = np.eye(24) - 1 / 24
    scale = parts.norm_scale.astype(np.float64)
    for layer, head in np.ndindex(3, 4):
        w = parts.key_kernel[layer, :, head].astype(np.float64) @ parts.query_bias[layer, head]
        folded = scale[layer][:, None] * m[layer, head] * scale[layer]
        ratio = np.linalg.norm(centred @ (scale[layer] * w)) / np.linalg.norm(centred @ folded @ centred)
        assert plan.share[layer, head] == pytest.approx(min(1, ratio**2), rel=1e-3, abs=6e-5)


@pytest.mark.parametrize("kind", ["flip", "rotate", "equalize"])
def test_controls_of_all_modes_are_as_strong_as_the_change(model, kind):
    """||M' - M||^2 by float64 dense arithmetic, no more than all; random modes of it are dropped."""
    _, _, parts, modes = model
    metrics = qkjax.measure(modes)
    own, plan = (resolve(Edit(kind, "layers=1", control=c), parts, metrics) for c in (None, 2))
    was, now = (
        np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in p[:2]))
        for p in (parts, edit(parts, modes, own.kind, own.weights, 13))
    )
    wanted = ((now - was) ** 2).sum((2, 3))[1] / (was**2).sum((2, 3))[1]
    assert plan.kind == "drop"
    np.testing.assert_allclose(plan.share[1], np.minimum(wanted, 1), atol=1e-4)
    np.testing.assert_allclose(lost_share(plan.weights, modes.s), plan.share, atol=1e-6)
    assert not plan.share[[0, 2]].any()


def test_keeping_all_without_the_bias_takes_it_out(model):
    """Of every head, also where no mode is dropped: a dose of it ends where it should."""
    _, _, parts, modes = model
    metrics = qkjax.measure(modes)
    for text, heads in (("all", slice(None)), ("modes=0- layers=1", 1)):
        plan = resolve(Edit("keep", text, key_bias=False), parts, metrics)
        found = edit(parts, modes, plan.kind, plan.weights, None, plan.key_bias, plan.heads)
        m, was = (np.einsum("ldhk,lehk->lhde", *(np.asarray(x) for x in p[:2])) for p in (found, parts))
        np.testing.assert_allclose(m, was, atol=1e-5 * np.abs(was).max())
        direction = np.einsum("ldhk,lhk->lhd", found.key_kernel, found.query_bias)
        assert not direction[heads].any()
        rest = np.delete(np.arange(3), np.arange(3)[heads])
        assert np.abs(direction[rest]).min(initial=1) > 0
    assert not resolve(Edit("keep", "all"), parts, metrics).heads.any()


def test_taking_out_the_bias_alone_leaves_the_interaction(model):
    config, params, parts, modes = model
    found = edit(parts, modes, "unbias", select("layers=1", qkjax.measure(modes)))
    m, was = (np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in p[:2])) for p in (found, parts))
    np.testing.assert_allclose(m, was, atol=1e-5 * np.abs(was).max())
    _, out = outputs(config, params, found)
    images = np.random.default_rng(1).standard_normal((3, 32, 32, 3)).astype(np.float32)
    _, seen = forward(qkjax.ViT(config), params, images, capture=("norm",))
    y = np.asarray(seen["norm"][1], np.float64)
    logits = np.einsum("bid,hde,bje->bhij", y, was[1], y) / np.sqrt(6)
    np.testing.assert_allclose(out["attention"][1], scipy.special.softmax(logits, axis=-1), atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_edits_touch_the_heads_selected_and_no_others(model, exact):
    _, _, parts, modes = model
    weights = select("layers=1 heads=0,2", qkjax.measure(modes))
    was = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in parts[:2]))
    bias = np.einsum("ldhk,lhk->lhd", parts.key_kernel, parts.query_bias)
    others = ~weights.any(-1)
    for kind, key_bias in (("symmetric", True), ("unbias", True), ("drop", False)):
        found = edit(parts, modes, kind, weights, 13 if exact else None, key_bias)
        now = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in found[:2]))
        np.testing.assert_allclose(now[others], was[others], atol=2e-5 * np.abs(was).max())
        direction = np.einsum("ldhk,lhk->lhd", found.key_kernel, found.query_bias)
        np.testing.assert_allclose(direction[others], bias[others], atol=1e-4)
        if kind != "unbias":
            assert np.abs(now - was)[~others].max() > 0.1
        if kind != "symmetric":
            np.testing.assert_allclose(direction[~others], 0, atol=1e-5)


@pytest.mark.parametrize("text", ["grouping=0.37", "contextual=0.05", "weakest=0.6 layers=1"])
def test_what_is_dropped_is_the_share_that_is_said(model, text):
    """||M' - M||^2 by float64 dense arithmetic is the share of ||M||^2, of targeted modes and of their controls; of
    flips it is four times the share that is selected. Kernels in float32 leave 1e-4."""
    _, _, parts, modes = model
    metrics = qkjax.measure(modes)
    was = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in parts[:2]))

    def edited(kind, control=None):
        plan = resolve(Edit(kind, text, True, control), parts, metrics)
        found = edit(parts, modes, plan.kind, plan.weights)
        return plan, np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in found[:2]))

    for control in (None, 0, 1):
        plan, now = edited("drop", control)
        wanted = np.where(plan.share > 0, float(re.search(r"=(0\.\d+)", text)[1]), 0)
        for kind, times in (("drop", 1), ("flip", 4)):
            plan, now = edited(kind, control)
            changed = ((now - was) ** 2).sum((2, 3)) / (was**2).sum((2, 3))
            np.testing.assert_allclose(changed, times * wanted, atol=times * 1e-4)
            np.testing.assert_allclose(changed, plan.share, atol=times * 1e-4)


@pytest.mark.parametrize("kind", ["rotate", "equalize"])
def test_controls_of_some_modes_change_as_much(model, kind):
    """||M' - M||^2 of a control by float64 dense arithmetic; modes of high cosine hardly change if they are rotated, so
    fewer random modes suffice. Kernels that are wide enough for every edit leave 1e-4."""
    _, _, parts, modes = model
    metrics = qkjax.measure(modes)
    was = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in parts[:2]))
    changes = []
    for control in (None, 0, 1):
        plan = resolve(Edit(kind, "modes=0-2", True, control), parts, metrics)
        assert plan.kind == ("drop" if control is not None and kind == "equalize" else kind)
        found = edit(parts, modes, plan.kind, plan.weights, 13)
        now = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in found[:2]))
        changes.append(((now - was) ** 2).sum((2, 3)) / (was**2).sum((2, 3)))
        np.testing.assert_allclose(changes[-1], plan.share, atol=1e-4)
    np.testing.assert_allclose(changes[1:], [changes[0]] * 2, atol=2e-4)


def test_heads_wider_than_the_embedding(model):
    """More columns than the embedding has: the rest of them is 0."""
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((1, 8, 2, 12)).astype(np.float32) for _ in range(2))
    zeros, ones = np.zeros((1, 2, 12), np.float32), np.ones((1, 8), np.float32)
    parts = qkjax.QueryKey(query, key, zeros + 1, zeros, ones, 0 * ones)
    modes = qkjax.decompose(query, key)
    m = np.einsum("ldhk,lehk->lhde", query.astype(np.float64), key)
    for columns in (None, 25):
        for kind, wanted in {"flip": -m, "symmetric": (m + np.swapaxes(m, 2, 3)) / 2}.items():
            found = edit(parts, modes, kind, np.ones(modes.s.shape, np.float32), columns)
            now = np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in found[:2]))
            np.testing.assert_allclose(now, wanted, atol=1e-4)


def test_controls_are_as_strong_and_random(model):
    _, _, parts, modes = model
    metrics = qkjax.measure(modes)
    own, *controls = (resolve(Edit("drop", "cosine>0.05", control=c), parts, metrics).weights for c in (None, 0, 1))
    assert (controls[0] != controls[1]).any()
    for control in controls:
        # `resolve` rounds the share to four decimals.
        np.testing.assert_allclose(lost_share(control, modes.s), lost_share(own, modes.s), atol=6e-5)
        assert ((control > 0) & (control < 1)).sum(-1).max() <= 1, "whole modes but for the last one"
        assert control.min() >= 0
        assert control.max() <= 1


def test_edited_files_give_the_same_logits_here_and_in_transformers(tmp_path):
    """A random ViT of transformers, edited here and exported; its weights put back into transformers' own model."""
    torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'qkjax[parity]'")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install 'qkjax[parity]'")
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=32,
            patch_size=8,
            num_labels=5,
            initializer_range=0.3,
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    found, notes = edit_with_notes(qkjax.load(tmp_path / "theirs", heads=4), "flip", "cosine>0 layers=0-1")
    assert notes == []
    qkjax.export(found, tmp_path / "edited.npz")
    checkpoint = qkjax.load(tmp_path / "edited.npz")
    state = theirs.state_dict()
    for layer in range(3):
        part = checkpoint.params["Transformer"][f"encoderblock_{layer}"]["MultiHeadDotProductAttention_0"]
        for name in ("query", "key"):
            (weight,) = [k for k in state if re.search(rf"\b{layer}\b.*\b({name}|{name[0]}_proj)\.weight$", k)]
            state[weight] = torch.tensor(part[name]["kernel"].reshape(24, 24).T.copy())
            state[weight.replace("weight", "bias")] = torch.tensor(part[name]["bias"].reshape(24).copy())
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    before = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).logits.detach().numpy()
    theirs.load_state_dict(state)
    wanted = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).logits.detach().numpy()
    ours, _ = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images)
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    assert np.abs(wanted - before).max() > 1e-2, "the edit does something"


def test_exact_heads_are_exact_and_commands_say_what_does_not_fit(model, tmp_path):
    """The symmetric part in wider heads is what float64 softmax of dense logits gives."""
    config, params, parts, _ = model
    checkpoint = Checkpoint("small", config, params, "small.npz", PRESETS["bigvision-small-crop"])
    wide, notes = edit_with_notes(checkpoint, "symmetric", exact=True)
    assert (wide.config.head_dim, notes) == (13, [])
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    _, found = forward(qkjax.ViT(wide.config), wide.params, images, capture=("norm", "attention"))
    y = np.asarray(found["norm"][0], np.float64)
    query, key, bias = (np.asarray(x[0], np.float64) for x in (parts.query_kernel, parts.key_kernel, parts.query_bias))
    m = np.einsum("dhk,ehk->hde", query, key)
    logits = np.einsum("bid,hde,bje->bhij", y, (m + np.swapaxes(m, 1, 2)) / 2, y)
    logits = (logits + np.einsum("bjd,dhk,hk->bhj", y, key, bias)[:, :, None]) / np.sqrt(6)
    np.testing.assert_allclose(found["attention"][0], scipy.special.softmax(logits, axis=-1), atol=1e-5)
    _, (note,) = edit_with_notes(checkpoint, "symmetric")
    assert "kernels with 6 columns represent 0." in note
    with pytest.raises(qkjax.QkjaxError, match=r"unknown edit 'dropp' \(nearest: 'drop'\); expected one of keep, drop"):
        edit_with_notes(checkpoint, "dropp")
    write_checkpoint(tmp_path / "small.npz", config, params)
    command = [sys.executable, "-m", "qkjax", "export", "small.npz", "out.npz", "--edit", "antisymmetric"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True)
    assert "note: kernels with 6 columns represent" in done.stderr
    m = qkjax.measure(qkjax.decompose(qkjax.load(tmp_path / "out.npz")))
    assert float(m.symmetric_share.max()) < 0.2, "of what 6 columns hold with the bias beside it"
