"""Doses in the attention logits are what float64 loops over images with dense logits say."""

import jax
import numpy as np
import pytest

import qkjax
from qkjax.activations.logit_sizes import logit_sizes
from qkjax.analyses.describe import describe
from qkjax.analyses.edit import Edit, changed_share, resolve, strength_of
from qkjax.images.generated import patterns
from qkjax.images.preprocess import Preprocess, normalise, picture
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.dose import Sizes, take, total_size
from qkjax.interaction.edit import edit
from qkjax.vit.model import forward
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint

PRESET = Preprocess("squash", "pil-bilinear", 32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
KINDS = ("drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """A small ViT with a class token, a register, and large biases."""
    config = qkjax.ViTConfig(
        width=24, depth=2, heads=3, head_dim=6, mlp_dim=48, patch_size=(8, 8), grid=(4, 4), pool="tok",
        class_token=True, registers=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tree = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), tree)
    path = tmp_path_factory.mktemp("model") / "small.npz"
    write_checkpoint(path, config, params, PRESET)
    return qkjax.load(path)


@pytest.fixture(scope="module")
def photographs():
    """Five images without their masks."""
    scenes = patterns(5, 0)
    return type(scenes)(scenes.name, scenes.names, lambda i: scenes.read(i).image, scenes.fingerprint)


@pytest.fixture(scope="module")
def tokens(checkpoint, photographs):
    """What attention receives in each image: layers, images, tokens, embed."""
    pixels = [
        normalise(picture(photographs.read(i), checkpoint.preprocess), checkpoint.preprocess)
        for i in range(len(photographs))
    ]
    return np.asarray(
        forward(qkjax.ViT(checkpoint.config), checkpoint.params, np.stack(pixels), capture=("norm",))[1]["norm"]
    )


def dense_size(tokens, m) -> np.ndarray:
    """Variance over keys of y_i M y_j / sqrt(d), mean over queries and images, by a loop in float64."""
    found = np.zeros(m.shape[:2])
    for layer, head in np.ndindex(*m.shape[:2]):
        for y in tokens[layer].astype(np.float64):
            found[layer, head] += (y @ m[layer, head] @ y.T / np.sqrt(6)).var(axis=1).mean()
    return found / tokens.shape[1]


def interaction(parts) -> np.ndarray:
    return np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in parts[:2]))


@pytest.fixture(scope="module")
def sizes(checkpoint, tokens) -> Sizes:
    modes, parts = qkjax.decompose(checkpoint), qkjax.query_key(checkpoint)
    direction = bias_terms(parts).key_direction
    present = np.ones(tokens.shape[1], bool)
    by_layer = [logit_sizes(y, u, s, v, w, present) for y, u, s, v, w in zip(tokens, *modes, direction, strict=True)]
    return Sizes(*(np.stack(x) / tokens.shape[1] for x in zip(*by_layer, strict=True)))


@pytest.mark.gpu
def test_sizes_are_those_of_dense_logits(checkpoint, tokens, sizes):
    """All modes, the two parts of M, and the key bias. Sums in float32 leave 1e-5."""
    parts, modes = qkjax.query_key(checkpoint), qkjax.decompose(checkpoint)
    m = interaction(parts)
    np.testing.assert_allclose(total_size(modes.s, sizes), dense_size(tokens, m), rtol=1e-5)
    for sign, found in ((1, sizes.symmetric), (-1, sizes.antisymmetric)):
        np.testing.assert_allclose(found, dense_size(tokens, (m + sign * np.swapaxes(m, 2, 3)) / 2), rtol=1e-5)
    w = np.einsum("ldhk,lhk->lhd", parts.key_kernel.astype(np.float64), parts.query_bias)
    term = np.einsum("lbnd,lhd->lhbn", tokens, w) / np.sqrt(6)
    np.testing.assert_allclose(sizes.key_bias, term.var(-1).mean(-1), rtol=1e-5)
    without = logit_sizes(tokens[0], modes.u[0], modes.s[0], modes.v[0], w[0].astype(np.float32), np.arange(5) < 4)
    fewer = dense_size(tokens[:1, :4], m[:1]) * 4
    np.testing.assert_allclose(np.einsum("hn,hnm,hm->h", modes.s[0], without.modes, modes.s[0]), fewer[0], rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["grouping=0.3", "contextual=0.15", "modes=0-2", "cosine>0", "all"])
def test_changes_are_those_of_dense_logits_and_controls_change_as_much(checkpoint, tokens, sizes, kind, text):
    """The variance of the change of the logits, with the kernels of the edit. Weights and kernels in float32 leave 1e-4
    of the total, and 1e-3 of the change."""
    parts, modes = qkjax.query_key(checkpoint), qkjax.decompose(checkpoint)
    metrics = qkjax.measure(modes)
    measures = {"strength": strength_of(parts, metrics), "logits": sizes}
    m, shares = interaction(parts), []
    total = dense_size(tokens, m)
    for control in (None, 0, 1):
        plan = resolve(Edit(kind, text, True, control, "logits"), metrics, measures)
        edited = interaction(edit(parts, modes, plan.kind, plan.weights, 13))
        shares.append(dense_size(tokens, edited - m) / total)
        np.testing.assert_allclose(shares[-1], plan.share, rtol=1e-3, atol=1e-4)
        norms = ((edited - m) ** 2).sum((2, 3)) / (m**2).sum((2, 3))
        found = changed_share(plan.kind, plan.weights, modes.s, measures["strength"])
        np.testing.assert_allclose(found, norms, rtol=1e-3, atol=1e-4)
    if "=0." in text and kind in ("drop", "flip"):
        np.testing.assert_allclose(shares[0], (4 if kind == "flip" else 1) * float(text.split("=")[1]), rtol=1e-3)
    if kind == "keep" and "=0." in text:
        kept = dense_size(tokens, m + _change(parts, modes, metrics, measures, kind, text)) / total
        np.testing.assert_allclose(kept, float(text.split("=")[1]), rtol=1e-3)
    for share in shares[1:]:
        reachable = shares[0] < 1 + 1e-3  # a control never drops more than all modes
        np.testing.assert_allclose(share[reachable], shares[0][reachable], rtol=2e-3, atol=2e-4)


def _change(parts, modes, metrics, measures, kind, text):
    plan = resolve(Edit(kind, text, True, None, "logits"), metrics, measures)
    return interaction(edit(parts, modes, plan.kind, plan.weights, 13)) - interaction(parts)


@pytest.mark.parametrize("kind", ["drop", "flip"])
def test_taking_is_a_plain_loop(kind):
    """Against mode after mode in float64, with a line search for the part of the last mode; cross terms included."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, 3, 8, 5))
    terms, order = factors @ np.swapaxes(factors, 2, 3), rng.standard_normal((2, 3, 8))
    mask, target = rng.random((2, 3, 8)) < 0.8, np.full((2, 3), 12.0)
    found = take(order, mask, terms, target)
    for head in np.ndindex(2, 3):
        parts = np.zeros(8)
        for mode in np.argsort(order[head]):
            if not mask[head][mode] or parts @ terms[head] @ parts >= 12 - 1e-9:
                continue
            for part in np.linspace(0, 1, 100_001):
                parts[mode] = part
                if parts @ terms[head] @ parts >= 12:
                    break
        np.testing.assert_allclose(found[head], parts, atol=2e-5)  # the step of the line search is 1e-5
    assert not found[~mask].any()
    np.testing.assert_array_equal(take(order, mask, terms, np.full((2, 3), 1e9)), mask)
    assert not take(order, mask, terms, np.zeros((2, 3))).any()


def test_ablations_state_both_doses_and_their_measure(checkpoint, photographs, tokens, sizes, tmp_path):
    """The pass of `ablate` over batches gives the sizes of one batch; a plan can state a measure for each grid, and
    continues over the same images with bit-identical weights."""
    grids = [
        {"edit": "drop", "select": "grouping=0.3 layers=1", "controls": 2},
        {"edit": "drop", "select": "grouping=0.3 layers=1", "controls": 2, "match": "strength"},
    ]
    options = qkjax.PassOptions(batch=2)  # the last batch is padded
    run = {"queries": 4, "options": options, "partial": tmp_path / "done"}
    data = qkjax.ablate(checkpoint, grids[:1], photographs, **run)
    more = qkjax.ablate(checkpoint, grids, photographs, **run)
    assert len(list((tmp_path / "done").iterdir())) == 1 + 6
    np.testing.assert_array_equal(more.attention_js[:4], data.attention_js)
    np.testing.assert_array_equal(more.share[:4], data.share)
    assert more.match.values.tolist() == ["", *["logits"] * 3, *["strength"] * 3]
    np.testing.assert_allclose(more.share[1:, 1], 0.3, atol=1e-4)
    np.testing.assert_array_equal(more.share[:4], more.logits_share[:4])
    np.testing.assert_array_equal(more.share[4:], more.strength_share[4:])
    assert not more.share[:, 0].any()
    metrics = qkjax.measure(qkjax.decompose(checkpoint))
    measures = {"strength": strength_of(qkjax.query_key(checkpoint), metrics), "logits": sizes}
    plan = resolve(Edit("drop", "grouping=0.3 layers=1"), metrics, measures)
    wanted = changed_share("drop", plan.weights, metrics.singular_value, sizes)
    np.testing.assert_allclose(more.logits_share[4], wanted, rtol=1e-4)
    only = qkjax.ablate(checkpoint, grids[:1], photographs, match="strength", queries=4, options=options)
    np.testing.assert_array_equal(only.attention_js[1:], more.attention_js[4:])
    with pytest.raises(qkjax.QkjaxError, match='match is \'weights\': expected "logits" or "strength"'):
        qkjax.ablate(checkpoint, [{"edit": "drop", "match": "weights"}], photographs)


def test_intervals_resample_the_groups_that_are_stated(checkpoint, photographs):
    """Two groups of images, of which one has a single image, against the numbers of the table."""
    data = qkjax.ablate(checkpoint, [{"edit": "drop"}], photographs, groups=[7, 7, 7, 7, 1], queries=4)
    assert data.group.values.tolist() == [7, 7, 7, 7, 1]
    assert data.attrs["interval_unit"] == "group"
    row = describe(data).tables["ablations"][1]
    assert (row["groups"], row["interval_unit"]) == (2, "group")
    values = 1 - data.representation_cosine.values[1].astype(np.float64)
    sums, counts = np.array([values[4], values[:4].sum()]), np.array([1, 4])
    deviations = [values[4] - values.mean(), 0, values[:4].mean() - values.mean()]  # twice one, both, twice the other
    spread = np.sqrt(np.dot([0.25, 0.5, 0.25], np.square(deviations)) - np.dot([0.25, 0.5, 0.25], deviations) ** 2)
    influence = 2 / 5 * (sums - counts * values.mean())
    factor = 12.7062 / 1.95996 * influence.std(ddof=1) / np.sqrt(2) / spread
    ends = values.mean() + factor * np.array([min(deviations), max(deviations)])
    np.testing.assert_allclose([row["representation_low"], row["representation_high"]], ends, rtol=0.05)
    with pytest.raises(qkjax.QkjaxError, match="groups has 2 numbers: expected one for each of the 5 images"):
        qkjax.ablate(checkpoint, [{"edit": "drop"}], photographs, groups=[0, 1])
