"""Query and key maps, logits put together from modes, and contributions, against plain numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from conftest import DATA
from qkjax.activations.contribution import contributions
from qkjax.activations.project import logits_from_modes, query_key_maps
from qkjax.vit.model import forward
from qkjax.vit.tree import query_key_kernels

SEEN = ("norm", "residual", "attention_logits", "attention")


def perturbed(config: qkjax.ViTConfig, seed: int = 0) -> dict:
    """Random parameters, biases and norms included; query biases as large as some trained models'."""
    image = np.zeros((1, *(n * p for n, p in zip(config.grid, config.patch_size, strict=True)), 3), np.float32)
    params = qkjax.ViT(config).init(jax.random.key(seed), image)["params"]
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        names = [part.key for part in path]
        spread = 5 if names[-2:] == ["query", "bias"] else 0.2
        return np.asarray(leaf + spread * rng.standard_normal(leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(fill, params)


CLIP = qkjax.ViTConfig(
    width=48, depth=3, heads=4, head_dim=12, mlp_dim=96, patch_size=(8, 8), grid=(4, 4), pool="tok", class_token=True,
    pre_norm=True, activation="quick_gelu", norm_eps=1e-5,
)  # fmt: skip
BEIT = qkjax.ViTConfig(
    width=48, depth=2, heads=4, head_dim=12, mlp_dim=96, patch_size=(8, 8), grid=(4, 4), pool="gap", class_token=True,
    posemb="none", relative_positions=True, layer_scale=True,
)  # fmt: skip


def small_photograph() -> np.ndarray:
    """A cat's face at 32 pixels, in -1..1."""
    from skimage import data, transform

    return transform.resize(data.chelsea()[:300, 60:360], (32, 32), anti_aliasing=True)[None].astype(np.float32) * 2 - 1


@pytest.fixture(scope="module", params=["tok", "gap", "clip", "dinov2"])
def seen(request):
    """(config, params, what a real photograph makes of it) of models of several kinds."""
    if request.param == "dinov2":
        default = request.getfixturevalue("default")
        config, params, images = default.config, default.params, request.getfixturevalue("photograph")
    elif request.param == "clip":
        config, params, images = CLIP, perturbed(CLIP), small_photograph()
    else:
        checkpoint = qkjax.load(DATA / {"tok": "a.npz", "gap": "b.npz"}[request.param])
        config, params, images = checkpoint.config, checkpoint.params, small_photograph()
    return config, params, forward(qkjax.ViT(config), params, images, SEEN)[1]


@pytest.mark.gpu
def test_modes_and_biases_give_back_the_logits(seen):
    """To 1e-4 of the logits' range, though the small modes' terms are tiny beside the biases' (issue)."""
    config, params, out = seen
    parts = qkjax.query_key(params)
    modes, bias = qkjax.decompose(*parts[:2]), qkjax.bias_terms(parts)
    logits = logits_from_modes(
        out["norm"], modes, bias.query_direction, bias.key_direction, bias.constant, config.head_dim
    )
    for layer, (ours, real) in enumerate(zip(logits, out["attention_logits"], strict=True)):
        error = float(abs(ours - real).max() / (real.max() - real.min()))
        assert error < 1e-4, f"layer {layer}: {error:.1e}"


@pytest.mark.gpu
@pytest.mark.parametrize("stream", ["norm", "residual"])
def test_maps_are_projections(seen, stream):
    """Each map against float64; the tolerance is float32's for a sum over the embedding."""
    config, params, out = seen
    modes = qkjax.decompose(*query_key_kernels(params))
    tokens = out[stream]
    special = config.prefix_tokens
    maps = query_key_maps(tokens, modes, special)
    side = maps.query.shape[2]
    assert maps.query.shape[2] * maps.query.shape[3] + special == tokens.shape[2]
    y = np.asarray(tokens, np.float64)
    for ours, apart, directions in (
        (maps.query, maps.query_special, modes.u),
        (maps.key, maps.key_special, modes.v),
    ):
        wanted = np.einsum("lbnd,lhdr->lbnhr", y, np.asarray(directions, np.float64))
        patches = wanted[:, :, special:].reshape(*wanted.shape[:2], side, -1, *wanted.shape[3:])
        size = np.linalg.norm(y, axis=-1).max()
        np.testing.assert_allclose(ours, patches, atol=2e-6 * size)
        np.testing.assert_allclose(apart, wanted[:, :, :special], atol=2e-6 * size)


def test_maps_lie_row_by_row_on_a_grid_that_is_not_square():
    """The patch at row 1, column 2 of a 2 x 3 grid is the last but none."""
    kernels = np.random.default_rng(0).standard_normal((2, 1, 8, 2, 4)).astype(np.float32)
    modes = qkjax.decompose(*kernels)
    tokens = jnp.zeros((1, 1, 7, 8)).at[0, 0, 1 + 1 * 3 + 2].set(1.0)
    maps = query_key_maps(tokens, modes, 1, (2, 3))
    assert maps.query.shape == (1, 1, 2, 3, 2, 4)
    assert [tuple(i) for i in np.argwhere(np.abs(maps.query).max((0, 1, 4, 5)) > 0)] == [(1, 2)]
    assert not np.abs(maps.query_special).any()
    with pytest.raises(qkjax.QkjaxError, match="6 patches do not fill a grid of 2 x 2: pass grid"):
        query_key_maps(tokens, modes, 1)
    with pytest.raises(qkjax.QkjaxError, match="differ in the number of layers or the embedding dimension"):
        query_key_maps(tokens[..., :4], modes, 1, (2, 3))


def plain_shares(out, modes, key_direction, head_dim, layer, head, weights):
    """The definition, term by term, in float64."""
    y, logits = (np.asarray(out[name][layer, 0], np.float64) for name in ("norm", "attention_logits"))
    logits = logits[head]
    u, s, v = (np.asarray(x, np.float64)[layer, head] for x in modes)
    terms = [np.outer(y @ u[:, n], y @ v[:, n]) * s[n] / np.sqrt(head_dim) for n in range(len(s))]
    terms.append(np.outer(np.ones(len(y)), y @ np.asarray(key_direction, np.float64)[layer, head]) / np.sqrt(head_dim))

    def centred(term):
        return term - (weights * term).sum(-1, keepdims=True)

    total = (weights * centred(logits) ** 2).sum()
    return np.array([(weights * centred(term) * centred(logits)).sum() / total for term in terms])


@pytest.mark.gpu
def test_contributions_are_as_defined(seen):
    """And with the key bias they add up to 1. Tolerance: float32 sums over tokens squared."""
    config, params, out = seen
    parts = qkjax.query_key(params)
    modes, towards_key = qkjax.decompose(*parts[:2]), qkjax.bias_terms(parts).key_direction
    for layer in (0, config.depth - 1):
        found = contributions(
            *(out[name][layer] for name in ("norm", "attention_logits", "attention")),
            *(x[layer] for x in modes),
            towards_key[layer],
            config.head_dim,
        )
        for kind, of_bias in (("variance", found.key_bias_variance), ("attention", found.key_bias_attention)):
            shares = np.asarray(getattr(found, kind))[0]
            known = np.isfinite(shares).all(-1)
            assert known.all() or kind == "attention", "logits always differ between some keys"
            np.testing.assert_allclose((shares.sum(-1) + of_bias[0])[known], 1, atol=2e-4)
            for head in np.flatnonzero(known)[[0, -1]]:
                attention = np.asarray(out["attention"][layer, 0, head], np.float64)
                weights = np.full_like(attention, 1 / len(attention)) if kind == "variance" else attention
                wanted = plain_shares(out, modes, towards_key, config.head_dim, layer, head, weights)
                np.testing.assert_allclose(np.append(shares[head], of_bias[0, head]), wanted, atol=2e-4)


def test_no_share_where_all_attention_is_on_one_key():
    """There float32 knows no variance; a number would be rounding divided by rounding."""
    logits = np.zeros((1, 1, 3, 3), np.float32)
    logits[..., 0] = 400
    attention = np.zeros_like(logits)
    attention[..., 0] = 1
    y = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32)
    u, s, v = (np.ones(shape, np.float32) for shape in ((1, 4, 2), (1, 2), (1, 4, 2)))
    found = contributions(y, logits, attention, u, s, v, np.zeros((1, 4), np.float32), 2)
    assert np.isnan(found.attention).all()
    assert np.isfinite(found.variance).all()


def test_relative_positions_have_what_is_left():
    params = perturbed(BEIT, 1)
    out = forward(qkjax.ViT(BEIT), params, small_photograph(), SEEN)[1]
    parts = qkjax.query_key(params)
    modes, bias = qkjax.decompose(*parts[:2]), qkjax.bias_terms(parts)
    found = contributions(
        *(out[name][0] for name in ("norm", "attention_logits", "attention")),
        *(x[0] for x in modes), bias.key_direction[0], BEIT.head_dim,
    )  # fmt: skip
    left = out["attention_logits"] - logits_from_modes(
        out["norm"], modes, bias.query_direction, bias.key_direction, bias.constant, BEIT.head_dim
    )
    table = np.asarray(
        params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]["relative_position_bias"]
    )
    assert np.isin(np.round(np.asarray(left[0, 0, 0]), 3), np.round(table[:, 0], 3)).mean() > 0.99
    logits, rest = (np.asarray(x[0, 0], np.float64) for x in (out["attention_logits"], left))
    logits, rest = (x - x.mean(-1, keepdims=True) for x in (logits, rest))
    wanted = 1 - (rest * logits).sum((1, 2)) / (logits**2).sum((1, 2))
    np.testing.assert_allclose(found.variance[0].sum(-1) + found.key_bias_variance[0], wanted, atol=2e-4)


def test_a_change_of_basis_changes_no_map():
    """Wq -> Wq A^T, Wk -> Wk A^-1 changes queries and keys, not M, so not one map (up to a joint sign)."""
    rng = np.random.default_rng(2)
    query, key = rng.standard_normal((2, 1, 24, 2, 6)).astype(np.float32)
    change = rng.standard_normal((6, 6)) + 3 * np.eye(6)
    other = [(k @ a).astype(np.float32) for k, a in ((query, change.T), (key, np.linalg.inv(change)))]
    tokens = jnp.asarray(rng.standard_normal((1, 1, 9, 24)), jnp.float32)
    first, second = (query_key_maps(tokens, qkjax.decompose(*pair), 0) for pair in ((query, key), other))
    np.testing.assert_allclose(first.query, second.query, atol=2e-4)
    np.testing.assert_allclose(first.key, second.key, atol=2e-4)
