"""Metrics against closed forms and dense float64 matrices; the null against sampling."""

import jax
import numpy as np
import pytest
from scipy import stats

import qkjax
from qkjax.interaction.null import cosine_quantile, null_band
from qkjax.results.modes import layer_table
from qkjax.vit.model import forward
from qkjax.vit.tree import query_key_kernels


def dense(kernels) -> np.ndarray:
    query, key = (k.astype(np.float64) for k in kernels)
    return np.einsum("ldhk,lehk->lhde", query, key)


@pytest.fixture(params=["lapack", "products"])
def both_ways(request, monkeypatch):
    """The spectra of CPUs, and those of accelerators, run here on a CPU."""
    monkeypatch.setattr("qkjax.interaction.metrics.by_lapack", lambda: request.param == "lapack")
    monkeypatch.setattr("qkjax.interaction.metrics.cpu_device", lambda: None)


@pytest.mark.gpu
@pytest.mark.usefixtures("both_ways")
def test_tied_repulsive_and_orthogonal_kernels(kernels):
    query = kernels[0]
    tied = qkjax.measure(qkjax.decompose(query, query))
    np.testing.assert_allclose(tied.cosine, 1, atol=1e-5)
    np.testing.assert_allclose(tied.symmetric_share, 1, atol=1e-5)
    repulsive = qkjax.measure(qkjax.decompose(query, -query))
    np.testing.assert_allclose(repulsive.cosine, -1, atol=1e-5)
    halves = np.split(np.eye(48, dtype=np.float32)[None, :, None], 2, axis=-1)
    apart = qkjax.measure(qkjax.decompose(*(h[..., :12] * np.arange(12, 0, -1, dtype=np.float32) for h in halves)))
    np.testing.assert_allclose(apart.cosine, 0, atol=1e-6)
    np.testing.assert_allclose(apart.symmetric_share, 0.5, atol=1e-6)


@pytest.mark.usefixtures("both_ways")
def test_antisymmetric_interaction():
    """M = a b^T - b a^T: both singular values equal, no symmetric part, every cosine 0."""
    a, b = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 2)))[0].T.astype(np.float32)
    query, key = np.stack([a, -b], -1)[None, :, None], np.stack([b, a], -1)[None, :, None]
    metrics = qkjax.measure(qkjax.decompose(query, key))
    np.testing.assert_allclose(metrics.symmetric_share, 0, atol=1e-6)
    np.testing.assert_allclose(metrics.weighted_cosine, 0, atol=1e-6)
    np.testing.assert_allclose(metrics.antisymmetric_spectrum[0, 0], [1, 0], atol=1e-6)
    np.testing.assert_allclose(metrics.symmetric_eigenvalues, 0, atol=1e-6)
    assert np.asarray(metrics.degenerate).all()


@pytest.mark.gpu
@pytest.mark.usefixtures("both_ways")
def test_against_dense_matrices(kernels):
    metrics = qkjax.measure(qkjax.decompose(*kernels))
    m = dense(kernels)
    s = np.linalg.svd(m, compute_uv=False)[..., :12]
    trace, energy = np.trace(m, axis1=-2, axis2=-1), (m**2).sum((-1, -2))
    np.testing.assert_allclose(metrics.weighted_cosine, trace / s.sum(-1), atol=1e-6)
    np.testing.assert_allclose(metrics.mean_cosine, np.asarray(metrics.cosine).mean(-1), atol=1e-6)
    np.testing.assert_allclose(metrics.stable_rank, energy / s[..., 0] ** 2, rtol=1e-5)
    p = s / s.sum(-1, keepdims=True)
    np.testing.assert_allclose(metrics.effective_rank, np.exp(stats.entropy(p, axis=-1)), rtol=1e-5)
    np.testing.assert_allclose(metrics.cumulative_strength, p.cumsum(-1), atol=1e-6)
    symmetric, antisymmetric = (m + m.swapaxes(-1, -2)) / 2, (m - m.swapaxes(-1, -2)) / 2
    np.testing.assert_allclose(metrics.symmetric_share, (symmetric**2).sum((-1, -2)) / energy, atol=1e-6)
    # Of 48 dimensions 24 = 2 x rank are not null.
    values = np.sort(np.linalg.eigvalsh(symmetric))[..., ::-1]
    kept = np.concatenate([values[..., :12], values[..., -12:]], -1)
    np.testing.assert_allclose(metrics.symmetric_eigenvalues, kept, atol=1e-5 * s.max())
    pairs = np.sort(np.linalg.eigvals(antisymmetric).imag)[..., ::-1][..., :12]
    np.testing.assert_allclose(metrics.antisymmetric_spectrum, pairs, atol=1e-5 * s.max())
    # The two parts share the energy, and the trace is the sum of the symmetric eigenvalues.
    parts = [(np.asarray(x) ** 2).sum(-1) for x in (metrics.symmetric_eigenvalues, metrics.antisymmetric_spectrum)]
    np.testing.assert_allclose(parts[0] + 2 * parts[1], energy, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(metrics.symmetric_eigenvalues).sum(-1), trace, atol=1e-5 * s.max())


@pytest.mark.usefixtures("both_ways")
def test_real_spectra(default, default_modes):
    layers = np.array([0, 5, 11])
    metrics = qkjax.measure(jax.tree.map(lambda x: x[layers], default_modes))
    m = dense([kernel[layers] for kernel in query_key_kernels(default.params)])
    for layer, head in ((0, 0), (0, 5), (1, 3), (2, 0)):
        one = m[layer, head]
        values = np.sort(np.linalg.eigvalsh((one + one.T) / 2))[::-1]
        kept = np.concatenate([values[:64], values[-64:]])
        scale = np.linalg.norm(one, 2)
        np.testing.assert_allclose(metrics.symmetric_eigenvalues[layer, head], kept, atol=1e-5 * scale)
        share = ((one + one.T) ** 2).sum() / 4 / (one**2).sum()
        np.testing.assert_allclose(metrics.symmetric_share[layer, head], share, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("both_ways")
def test_a_head_of_zeros_has_no_cosine(kernels):
    query, key = kernels
    query[1, :, 2] = 0
    metrics = qkjax.measure(qkjax.decompose(query, key))
    for values in (metrics.weighted_cosine, metrics.mean_cosine):
        assert np.argwhere(np.isnan(values)).tolist() == [[1, 2]]
    assert np.asarray(metrics.degenerate)[1, 2].all()
    rows = layer_table(metrics, qkjax.bias_terms(_attention(query, key)))
    assert all(np.isfinite(value) for row in rows for value in row.values())


def test_layer_table_by_hand(kernels):
    """Every column, recomputed with numpy from dense matrices."""
    attention = _attention(*kernels)
    metrics = qkjax.measure(qkjax.decompose(*kernels))
    bias = qkjax.bias_terms(attention)
    row = layer_table(metrics, bias)[1]
    m = dense(kernels)[1]
    u, s, vt = np.linalg.svd(m)
    u, s, vt = u[..., :12], s[..., :12], vt[:, :12]
    cosine = np.einsum("hdn,hnd->hn", u, vt)
    p = s / s.sum(-1, keepdims=True)
    wanted = {
        "layer": 1, "relative_depth": 0.5, "weighted_cosine": (p * cosine).sum(-1).mean(), "mean_cosine": cosine.mean(),
        "effective_rank": np.exp(-(p * np.log(p)).sum(-1)).mean(),
        "stable_rank": ((s**2).sum(-1) / s[:, 0] ** 2).mean(),
        "half_strength_modes": np.mean([next(n for n in range(1, 13) if share[:n].sum() >= 0.5) for share in p]),
        "symmetric_share": (((m + m.swapaxes(1, 2)) ** 2).sum((1, 2)) / 4 / (m**2).sum((1, 2))).mean(),
        "key_bias": np.mean(np.asarray(bias.key_spread)[1] / np.asarray(bias.interaction_spread)[1]),
        "query_bias": np.mean(np.asarray(bias.query_spread)[1] / np.asarray(bias.interaction_spread)[1]),
        "degenerate_share": 0, "null_weighted_cosine": metrics.null.weighted_cosine,
        "null_mean_cosine": metrics.null.mean_cosine, "null_gaussian": metrics.null.weighted_cosine,
    }  # fmt: skip
    own = (p * cosine).sum(-1)
    half = metrics.null.head_weighted_cosine
    wanted |= {"grouping_heads": (own > half).sum(), "negative_heads": (own < -half).sum(),
               "chance_heads": (np.abs(own) <= half).sum()}  # fmt: skip
    assert row.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(row[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def _attention(query, key) -> qkjax.QueryKey:
    layers, embed, heads, head_dim = query.shape
    rng = np.random.default_rng(3)
    query_bias, key_bias = rng.standard_normal((2, layers, heads, head_dim)).astype(np.float32)
    scale, offset = rng.uniform(0.5, 2, (2, layers, embed)).astype(np.float32)
    return qkjax.QueryKey(query, key, query_bias, key_bias, scale, offset)


def test_default_model_groups_early_and_not_in_the_middle(default_modes):
    """The paper's finding, on the weights that everyone can fetch."""
    metrics = qkjax.measure(default_modes)
    layers = np.asarray(metrics.weighted_cosine).mean(-1)
    assert layers[:2].min() > 0.5 > 50 * metrics.null.weighted_cosine
    assert layers[3:10].max() < 0.5 * layers[:2].min()


@pytest.mark.parametrize("embed", [3, 48, 768])
def test_cosine_of_random_directions(embed):
    """D = 3 is Archimedes' theorem: the cosine is uniform on [-1, 1]."""
    if embed == 3:
        np.testing.assert_allclose(cosine_quantile(3), 0.95, atol=1e-9)
    x = np.random.default_rng(0).standard_normal((2, 40_000, embed))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    inside = (np.abs((x[0] * x[1]).sum(-1)) < cosine_quantile(embed)).mean()
    np.testing.assert_allclose(inside, 0.95, atol=4 * np.sqrt(0.95 * 0.05 / 40_000))


@pytest.mark.parametrize(("embed", "head_dim"), [(12, 4), (24, 6), (48, 12)])
def test_null_of_random_kernels(embed, head_dim):
    """Against heads that numpy draws and decomposes: 95% of |weighted cosine| of one, and of the mean of four.

    The widths differ by at most 2.5%: 1% is the error of a quantile of 24,000 heads, 2% that of the mean of layers."""
    null = null_band(embed, 4, head_dim)
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((2, 24_000, embed, head_dim))
    core = np.linalg.qr(q, mode="r") @ np.linalg.qr(k, mode="r").swapaxes(1, 2)
    left, s, right = np.linalg.svd(core)
    heads = np.einsum("hdn,hdn->h", q, k) / s.sum(-1)
    np.testing.assert_allclose(null.head_weighted_cosine, np.quantile(np.abs(heads), 0.95), rtol=0.025)
    layers = heads.reshape(-1, 4).mean(-1)
    np.testing.assert_allclose(null.weighted_cosine, np.quantile(np.abs(layers), 0.95), rtol=0.035)
    bases = np.linalg.qr(q[:8000])[0] @ left[:8000], np.linalg.qr(k[:8000])[0] @ right[:8000].swapaxes(1, 2)
    plain = (bases[0] * bases[1]).sum(1).mean(-1).reshape(-1, 4).mean(-1)
    np.testing.assert_allclose(null.mean_cosine, np.quantile(np.abs(plain), 0.95), rtol=0.06)
    assert null == null_band(embed, 4, head_dim)


def test_bias_terms_make_up_the_logits(kernels):
    """y_i M y_j + y_i a + b y_j + c, divided by sqrt(d), is q_i . k_j / sqrt(d)."""
    attention = _attention(*kernels)
    query, key, query_bias, key_bias, scale, offset = (np.asarray(x, np.float64) for x in attention[:6])
    bias = qkjax.bias_terms(attention)
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2000, 48))
    x -= x.mean(-1, keepdims=True)
    x /= x.std(-1, keepdims=True)
    layer, head = 1, 2
    y = x * scale[layer] + offset[layer]
    q = y @ query[layer, :, head] + query_bias[layer, head]
    k = y @ key[layer, :, head] + key_bias[layer, head]
    a, b, c = (np.asarray(t[layer, head]) for t in bias[:3])
    bilinear = (y @ query[layer, :, head]) @ (y @ key[layer, :, head]).T
    np.testing.assert_allclose(bilinear + (y @ a)[:, None] + (y @ b)[None] + c, q @ k.T, atol=1e-3)
    # Spreads, against tokens drawn at random: 2000 of them tell a standard deviation to 2%.
    np.testing.assert_allclose(bias.key_spread[layer, head], (y @ b).std() / np.sqrt(12), rtol=0.08)
    np.testing.assert_allclose(bias.query_spread[layer, head], (y @ a).std() / np.sqrt(12), rtol=0.08)
    centred = x * scale[layer]
    bilinear = (centred @ query[layer, :, head]) @ (centred @ key[layer, :, head]).T
    np.testing.assert_allclose(bias.interaction_spread[layer, head], bilinear.std() / np.sqrt(12), rtol=0.05)


def test_softmax_cancels_the_query_term_and_not_the_key_term(default, photograph):
    """On a real image: attention follows from M and the key term alone."""
    model = qkjax.ViT(default.config)
    _, seen = forward(model, default.params, photograph, capture=("norm", "attention"))
    attention = qkjax.query_key(default.params)
    modes, bias = qkjax.decompose(*attention[:2], normalize=True), qkjax.bias_terms(attention)
    layer, head = 6, 2
    y = np.asarray(seen["norm"][layer, 0], np.float64)
    u, s, v = (np.asarray(x[layer, head], np.float64) for x in modes)
    logits = (y @ u * s) @ (y @ v).T
    key_term = y @ np.asarray(bias.key_direction[layer, head], np.float64) / 8

    def softmax(z):
        z = np.exp(z - z.max(-1, keepdims=True))
        return z / z.sum(-1, keepdims=True)

    wanted = np.asarray(seen["attention"][layer, 0, head])
    np.testing.assert_allclose(softmax(logits + key_term[None]), wanted, atol=1e-4)
    assert np.abs(softmax(logits) - wanted).max() > 0.01


@pytest.mark.parametrize("scale", [1e-22, 1e-20, 1e-15, 1.0, 1e15, 1e18])
@pytest.mark.usefixtures("both_ways")
def test_heads_beyond_float32(scale):
    """Metrics do not depend on the size of a head, though s may leave float32; heads of a usual size do not change."""
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 1, 96, 2, 16)).astype(np.float32)
    factor = np.array([1.0, scale], np.float32)[None, None, :, None]  # the second head alone
    usual, modes = qkjax.decompose(query, key), qkjax.decompose(query * factor, key * factor)
    metrics = qkjax.measure(modes)
    u, s, vt = np.linalg.svd(np.einsum("dhk,ehk->hde", query[0].astype(float), key[0].astype(float)))
    cosine = np.einsum("hdn,hnd->hn", u, vt)[:, :16]
    wanted = (s[:, :16] * cosine).sum(-1) / s[:, :16].sum(-1)
    np.testing.assert_allclose(metrics.weighted_cosine[0], wanted, atol=1e-6)
    np.testing.assert_allclose(metrics.effective_rank[0], qkjax.measure(usual).effective_rank[0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(modes.s)[0, 1], s[1, :16] * np.float64(np.float32(scale)) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(modes.s, np.float32)[0, 0], usual.s[0, 0])
    assert not np.asarray(metrics.degenerate).any()


def test_a_head_of_zeros_stays_one():
    kernels = np.zeros((2, 1, 12, 2, 4), np.float32)
    kernels[:, :, :, 0] = np.random.default_rng(0).standard_normal((2, 1, 12, 4))
    metrics = qkjax.measure(qkjax.decompose(*kernels))
    assert np.isfinite(metrics.weighted_cosine[0, 0]) and np.isnan(metrics.weighted_cosine[0, 1])
