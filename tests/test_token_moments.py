"""Moments of tokens, map correlations and the parts of logits: equal to loops over tokens and pairs in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from qkjax.activations.position_content import logit_parts
from qkjax.activations.token_moments import TokenMoments, batch_moments, empty_moments, merge_moments, statistics_of
from qkjax.interaction.map_correlation import map_correlation, map_shares

SPECIAL, PLACES, EMBED, LAYERS = 2, 6, 8, 3


def tokens_of(images: int) -> np.ndarray:
    """Tokens (layers, images, places, embed) with a mean and a position factor larger than the content."""
    rng = np.random.default_rng(3)
    shapes = (LAYERS, 1, 1, EMBED), (LAYERS, 1, SPECIAL + PLACES, EMBED), (LAYERS, images, SPECIAL + PLACES, EMBED)
    mean, position, content = (rng.standard_normal(shape) for shape in shapes)
    return (20 * mean + 3 * position + content).astype(np.float32)


def moments_of(tokens: np.ndarray, halves: np.ndarray, size: int) -> TokenMoments:
    """The moments from batches that are padded with images of weight 0."""
    total = empty_moments(LAYERS, SPECIAL + PLACES, EMBED)
    for start in range(0, tokens.shape[1], size):
        batch, own = tokens[:, start : start + size], halves[start : start + size]
        weights = np.zeros((2, size), np.float32)
        weights[own, np.arange(len(own))] = 1
        padded = np.full((LAYERS, size, *tokens.shape[2:]), 7, np.float32)
        padded[:, : len(own)] = batch
        parts = [batch_moments(jnp.asarray(layer), jnp.asarray(weights), SPECIAL) for layer in padded]
        means, scatters = (np.stack(x) for x in zip(*parts, strict=True))
        total = merge_moments(total, TokenMoments(weights.sum(1), means, scatters), SPECIAL)
    return total


@pytest.mark.gpu
def test_statistics_are_those_of_loops():
    """To 1e-6 of the size of each covariance, though the mean is 20 times the content: batches are centred."""
    tokens, halves = tokens_of(11), np.array([0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1])
    found = statistics_of(moments_of(tokens, halves, 4), SPECIAL)
    for layer in range(LAYERS):
        y = tokens[layer, :, SPECIAL:].astype(np.float64)
        mean, places = np.zeros(EMBED), np.zeros((PLACES, EMBED))
        for image in range(11):
            for place in range(PLACES):
                mean += y[image, place] / (11 * PLACES)
                places[place] += y[image, place] / 11
        position, content = np.zeros((2, EMBED, EMBED))
        for place in range(PLACES):
            position += np.outer(places[place] - mean, places[place] - mean) / PLACES
            for image in range(11):
                rest = y[image, place] - places[place]
                content += np.outer(rest, rest) / (11 * PLACES)
        np.testing.assert_allclose(found.mean[layer], mean, rtol=1e-6)
        np.testing.assert_allclose(found.place_mean[layer, SPECIAL:], places, rtol=1e-6)
        np.testing.assert_allclose(found.place_mean[layer, :SPECIAL], tokens[layer, :, :SPECIAL].mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.content[layer], content, atol=1e-6 * content.max())
        np.testing.assert_allclose(found.position[layer], position, atol=2e-6 * position.max())
        total = np.trace(position + content)
        assert found.position_share[layer] == pytest.approx(np.trace(position) / total, rel=2e-6)
        one, other = (y[halves == half].mean(0) for half in range(2))
        across = ((one - one.mean(0)) * (other - other.mean(0))).sum() / PLACES
        assert found.position_share_halves[layer] == pytest.approx(across / total, rel=1e-5)


def test_merging_does_not_depend_on_the_batches():
    tokens, halves = tokens_of(9), np.arange(9) % 2
    whole = statistics_of(moments_of(tokens, halves, 9), SPECIAL)
    for size in (1, 2, 5):
        found = statistics_of(moments_of(tokens, halves, size), SPECIAL)
        np.testing.assert_allclose(found.content, whole.content, atol=2e-6 * whole.content.max())
        np.testing.assert_allclose(found.position, whole.position, atol=2e-6 * whole.position.max())


def test_a_single_image_has_no_content():
    found = statistics_of(moments_of(tokens_of(1), np.zeros(1, int), 2), SPECIAL)
    assert not found.content.any()
    np.testing.assert_allclose(found.position_share, 1)
    assert np.isnan(found.position_share_halves).all()


def test_halves_see_that_there_is_no_position():
    """Of tokens without a position factor, the share is that of noise, and that across halves is near 0; 3 errors."""
    tokens = np.random.default_rng(0).standard_normal((LAYERS, 20, SPECIAL + PLACES, EMBED)).astype(np.float32)
    found = statistics_of(moments_of(tokens, np.arange(20) % 2, 8), SPECIAL)
    noise = (PLACES - 1) / PLACES / 20
    assert found.position_share.mean() == pytest.approx(noise, abs=0.016)
    assert found.position_share_halves.mean() == pytest.approx(0, abs=0.026)


@pytest.mark.gpu
def test_map_correlation_is_that_of_the_maps():
    """Against correlations of projections of single tokens, in float64; modes are float32, hence 1e-6."""
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, LAYERS, EMBED, 2, 3)).astype(np.float32)
    modes = qkjax.decompose(query, key)
    y = rng.standard_normal((LAYERS, 50, EMBED)) @ rng.standard_normal((LAYERS, EMBED, EMBED)) + 5
    found = map_correlation(modes, np.stack([np.cov(layer.T, bias=True) for layer in y]))
    u, s, v = (np.asarray(x, np.float64) for x in modes)
    for layer in range(LAYERS):
        for head in range(2):
            above = below = 0.0
            for n in range(3):
                maps = y[layer] @ u[layer, head, :, n], y[layer] @ v[layer, head, :, n]
                corr = np.corrcoef(*maps)[0, 1]
                strength = s[layer, head, n] * maps[0].std() * maps[1].std()
                assert found.mode[layer, head, n] == pytest.approx(corr, abs=1e-10)
                assert found.strength[layer, head, n] == pytest.approx(strength, rel=1e-10)
                above, below = above + strength * corr, below + strength
            assert found.head[layer, head] == pytest.approx(above / below, abs=1e-10)


def test_folding_the_scale_and_the_metric_of_the_tokens():
    """The scale in M and its inverse in the covariance leave the numerator of a head alone: tr(M^T S)."""
    rng = np.random.default_rng(2)
    kernels, scale = rng.standard_normal((2, 1, EMBED, 2, 3)).astype(np.float32), np.linspace(0.5, 2, EMBED)
    covariance = np.cov(rng.standard_normal((EMBED, 40)))[None]
    folded = qkjax.decompose(*kernels, norm_scale=scale[None].astype(np.float32))
    ours = map_correlation(qkjax.decompose(*kernels), covariance)
    theirs = map_correlation(folded, covariance / np.outer(scale, scale)[None])
    numerators = [(x.mode * x.strength).sum(-1) for x in (ours, theirs)]
    np.testing.assert_allclose(*numerators, rtol=1e-5)


def test_chance_of_map_correlations():
    """The 95% interval contains about 95% of random heads, for tokens along few directions; 400 heads: +-3 errors."""
    rng = np.random.default_rng(4)
    covariance = np.diag(0.9 ** np.arange(96))[None]
    modes = qkjax.decompose(*rng.standard_normal((2, 1, 96, 400, 8)).astype(np.float32))
    found = map_correlation(modes, covariance)
    inside = (np.abs(found.head) < found.null[0][:, None]).mean()
    assert inside == pytest.approx(0.95, abs=0.033)
    assert found.null[1] == pytest.approx(found.null[0] / 20)


def test_maps_that_do_not_vary_have_no_correlation():
    modes = qkjax.decompose(*np.random.default_rng(0).standard_normal((2, 1, EMBED, 2, 3)).astype(np.float32))
    found = map_correlation(modes, np.zeros((1, EMBED, EMBED)))
    assert np.isnan(found.mode).all()
    assert np.isnan(found.head).all()
    with pytest.raises(qkjax.QkjaxError, match=r"covariance has shape \(2, 8, 8\): expected .* = \(1, 8, 8\)"):
        map_correlation(modes, np.zeros((2, EMBED, EMBED)))


def test_shares_of_maps_are_those_of_variances():
    """The product of a query share and a key share is the share of a pair of parts over all pairs of two images."""
    tokens = tokens_of(7) - tokens_of(7).mean((1, 2), keepdims=True) + 1
    statistics = statistics_of(moments_of(tokens, np.arange(7) % 2, 3), SPECIAL)
    modes = qkjax.decompose(*np.random.default_rng(5).standard_normal((2, LAYERS, EMBED, 2, 3)).astype(np.float32))
    query, key = map_shares(modes, statistics.mean, statistics.position, statistics.content)
    np.testing.assert_allclose(query.sum(-1), 1)
    y = tokens[1, :, SPECIAL:].astype(np.float64)
    mean, place = y.mean((0, 1)), y.mean(0)
    u, _, v = (np.asarray(x[1, 1], np.float64) for x in modes)
    alpha, beta = y @ u[:, 2], (y - mean) @ v[:, 2]
    whole = np.mean([(a * b) ** 2 for a in alpha.ravel() for b in beta.ravel()])
    own = np.mean([(a * b) ** 2 for a in ((y - place) @ u[:, 2]).ravel() for b in ((place - mean) @ v[:, 2]).ravel()])
    assert query[1, 1, 2, 2] * key[1, 1, 2, 0] == pytest.approx(own / whole, rel=1e-5)


@pytest.mark.gpu
def test_parts_of_logits_are_those_of_loops_over_pairs():
    """Float32, against loops over all pairs in float64, to 1e-6 of the variance; and in float64 to 1e-12."""
    rng = np.random.default_rng(0)
    images, tokens, heads, width = 3, 5, 2, 4
    query, key = rng.standard_normal((2, images, tokens, heads, width)) + rng.standard_normal(
        (2, 1, tokens, heads, width)
    )
    wanted = np.zeros((images, heads, 3, 2))
    means = query.mean(0), key.mean(0)
    for image in range(images):
        for head in range(heads):
            q, k = query[image, :, head], key[image, :, head]
            qm, km = means[0][:, head], means[1][:, head]
            queries = np.stack([np.tile(qm.mean(0), (tokens, 1)), qm - qm.mean(0), q - qm])
            keys = np.stack([km - km.mean(0), (k - k.mean(0)) - (km - km.mean(0))])
            for i in range(tokens):
                for j in range(tokens):
                    whole = sum(q[i] @ (k[j] - k[other]) for other in range(tokens)) / tokens / np.sqrt(width)
                    for a in range(3):
                        for b in range(2):
                            term = queries[a, i] @ keys[b, j] / np.sqrt(width)
                            wanted[image, head, a, b] += term * whole / tokens**2
    variance = wanted.sum((2, 3))
    logits = np.einsum("bihd,bjhd->bhij", query, key) / np.sqrt(width)
    np.testing.assert_allclose(variance, logits.var(-1).mean(-1))
    single = logit_parts(*(np.float32(x) for x in (query, key, *means)))
    np.testing.assert_allclose(single, wanted, atol=1e-6 * variance.max())
    with jax.enable_x64(True):
        np.testing.assert_allclose(logit_parts(query, key, *means), wanted, atol=1e-12)
