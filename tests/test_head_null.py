"""What is expected of each head by chance, against simulations in numpy that decompose every random head densely."""

import numpy as np
import pytest
from scipy.stats import ortho_group

import qkjax
from conftest import DATA
from qkjax.analyses.analyze import summary
from qkjax.errors import QkjaxError
from qkjax.interaction.head_null import NULLS, head_null, readings, rotated_cosines
from qkjax.interaction.null import half_width, weighted_width
from qkjax.results.chance import head_rows
from qkjax.results.modes import layer_rows, metrics_of
from qkjax.results.store import read_result, write_dataset

DECAYS = {
    "flat": np.ones,
    "slow": lambda rank: 1 / np.arange(1.0, rank + 1),
    "fast": lambda rank: np.exp(-np.arange(rank) / 2),
}
SHAPES = [(12, 4), (48, 12), (96, 32)]
TRUTHS = 6000
COVERAGE = 0.93, 0.97
"""Expected shares of random heads inside 95% intervals: 2% for the error of the widths, 0.3% for that of a share."""


def widths_of(query: np.ndarray, key: np.ndarray, **options):
    modes = qkjax.decompose(query.astype(np.float32), key.astype(np.float32), **options)
    return head_null(modes, qkjax.measure(modes).null, query, key, options.get("norm_scale"))


def frames(count: int, embed: int, rank: int, seed: int) -> np.ndarray:
    """Uniform orthonormal frames (count, embed, rank)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, embed, rank)))
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("embed", "rank"), SHAPES)
def test_heads_with_the_same_spectrum(embed, rank, decay):
    """95% of heads with given s and independent uniform u and v lie in the interval; the variance is exact."""
    s = DECAYS[decay](rank)
    u, v = (frames(TRUTHS, embed, rank, seed) for seed in (1, 2))
    cosine = np.einsum("n,cdn,cdn->c", s, u, v) / s.sum()
    variance, dimensions = weighted_width(s[None], embed)
    np.testing.assert_allclose(cosine.var(), variance[0], rtol=5 * np.sqrt(2 / TRUTHS))
    assert COVERAGE[0] < (np.abs(cosine) < half_width(variance, dimensions)).mean() < COVERAGE[1]
    query = np.linalg.qr(np.random.default_rng(3).standard_normal((embed, rank)))[0] * s
    key = np.linalg.qr(np.random.default_rng(4).standard_normal((embed, rank)))[0]
    both = [np.tile(kernel[None, :, None], (1, 1, 3, 1)) for kernel in (query, key)]
    found = widths_of(*both)
    np.testing.assert_allclose(found.head[1], half_width(variance, dimensions)[0], rtol=1e-4)
    layers = cosine.reshape(-1, 3).mean(-1)
    assert COVERAGE[0] < (np.abs(layers) < found.layer[1]).mean() < COVERAGE[1] + 0.005


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("embed", "rank"), SHAPES)
def test_heads_with_a_random_rotation(embed, rank, tied, decay):
    """95% of heads Wq Q Wk^T lie in the interval of the head Wq Wk^T: scipy draws Q, an SVD gives the nuclear norm.

    2.5% for the error of the widths, 0.5% for that of a share. If one direction has most of the strength of both
    kernels, the nuclear norms are predicted less well, and the width is up to 5% too small."""
    query, key = np.random.default_rng(embed).standard_normal((2, 1, embed, 2, rank)) * DECAYS[decay](rank)
    key = query if tied else key
    rotation = ortho_group.rvs(rank, size=2 * 2000, random_state=7).reshape(2, 2000, rank, rank)
    cosines = []
    for head in range(2):
        q, k = query[0, :, head], key[0, :, head]
        core = np.linalg.qr(q, mode="r") @ rotation[head] @ np.linalg.qr(k, mode="r").T
        cosines.append(np.einsum("di,cij,dj->c", q, rotation[head], k) / np.linalg.svd(core, compute_uv=False).sum(-1))
    found, lowest = widths_of(query, key), 0.91 if tied and decay == "fast" else 0.925
    for head in range(2):
        assert lowest < (np.abs(cosines[head]) < found.head[2, 0, head]).mean() < 0.975
    assert lowest < (np.abs(np.mean(cosines, 0)) < found.layer[2, 0]).mean() < 0.975


def test_type_one_error_of_readings():
    """Heads whose rotation is random are called grouping or negative in 5% of cases, by `analyze`'s own functions.

    Their kernels share a space and have few strong directions, so that the other nulls call most of them special."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((24, 12)) * DECAYS["fast"](12)
    rotation = ortho_group.rvs(12, size=600, random_state=1)
    query = np.broadcast_to(shared[None, :, None], (1, 24, 600, 12))
    key = np.einsum("dk,hjk->dhj", shared, rotation)[None]
    modes = qkjax.decompose(query.astype(np.float32), key.astype(np.float32))
    metrics = qkjax.measure(modes)
    # Every head has the same chance, since Q is uniform: the widths of three heads stand for those of all.
    few = qkjax.decompose(query[:, :, :3].astype(np.float32), key[:, :, :3].astype(np.float32))
    found = head_null(few, metrics.null, query[:, :, :3], key[:, :, :3])
    errors = [
        (readings(metrics.weighted_cosine, width.mean(keepdims=True)) != "within chance").mean() for width in found.head
    ]
    assert 0.03 < errors[2] < 0.075
    assert errors[0] > 0.4
    assert errors[1] > 0.15


def test_a_head_that_is_special_is_found():
    """Tied kernels group and opposite kernels are negative, by any null; a head of zeros is neither."""
    query = np.random.default_rng(0).standard_normal((1, 48, 4, 12))
    key = query * np.array([1, -1, 0, 1])[:, None]
    key[:, :, 3] = np.random.default_rng(1).standard_normal((48, 12))
    modes = qkjax.decompose(query.astype(np.float32), key.astype(np.float32))
    metrics = qkjax.measure(modes)
    found = head_null(modes, metrics.null, query, key)
    assert np.isnan(found.head[:, 0, 2]).all()
    assert np.isfinite(found.layer).all()
    for width in found.head:
        words = readings(metrics.weighted_cosine, width)[0]
        assert words[:3].tolist() == ["grouping", "negative", "zero"]
    words = summary(metrics._replace(head_null=found))
    assert "Of 4 heads," in words
    assert words.endswith("negative.")


def test_scale_frame_and_factors(kernels):
    """Widths do not depend on the scale of M. With `center`, they are those of centred kernels."""
    base = widths_of(*kernels)
    scaled = widths_of(kernels[0] * np.float32(1e-15), kernels[1] * np.float32(1e12))
    np.testing.assert_allclose(scaled.head, base.head, rtol=1e-4)
    scale = np.random.default_rng(1).uniform(0.5, 2, (3, 48)).astype(np.float32)
    folded = [(x * scale[:, :, None, None]) - (x * scale[:, :, None, None]).mean(1, keepdims=True) for x in kernels]
    direct, options = widths_of(*folded), {"norm_scale": scale, "center": True}
    np.testing.assert_allclose(widths_of(*kernels, **options).head[2], direct.head[2], rtol=1e-4)
    np.testing.assert_allclose(widths_of(*kernels, **options).head[1], direct.head[1] * np.sqrt(48 / 47), rtol=0.002)
    turned = np.einsum("ldhk,kj->ldhj", kernels[1], ortho_group.rvs(12, random_state=0))
    np.testing.assert_allclose(rotated_cosines(*kernels).std(0), rotated_cosines(kernels[0], turned).std(0), rtol=0.08)
    np.testing.assert_array_equal(widths_of(*kernels).head, base.head)


def test_head_of_one_dimension_and_wide_head():
    """d = 1: the cosine of a head is that of its two vectors, up to the sign. d > D: there are D modes."""
    query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 2, 1))
    cosine = (
        (query * key).sum(1)[0, :, 0] / np.linalg.norm(query, axis=1)[0, :, 0] / np.linalg.norm(key, axis=1)[0, :, 0]
    )
    np.testing.assert_allclose(widths_of(query, key).head[2, 0], np.abs(cosine), rtol=1e-5)
    query, key = np.random.default_rng(0).standard_normal((2, 1, 4, 1, 8))
    q = ortho_group.rvs(8, size=4000, random_state=0)
    m = query[0, :, 0] @ q @ key[0, :, 0].T
    cosine = np.trace(m, axis1=1, axis2=2) / np.linalg.svd(m, compute_uv=False).sum(-1)
    np.testing.assert_allclose(widths_of(query, key).head[2, 0, 0], np.quantile(np.abs(cosine), 0.95), rtol=0.06)


@pytest.fixture(scope="module")
def analysed():
    return qkjax.analyze(qkjax.load(DATA / "a.npz"))


def test_results_contain_all_nulls(analysed, tmp_path):
    write_dataset(analysed, tmp_path / "modes.nc")
    data = read_result(tmp_path / "modes.nc")
    assert data["null"].values.tolist() == list(NULLS)
    assert data.attrs["null_default"] == "rotation"
    metrics = metrics_of(data)
    np.testing.assert_array_equal(metrics.head_null.head, analysed.null_weighted_cosine_width)
    described = qkjax.describe(data)
    rows = described.tables["heads"]
    assert len(rows) == data.weighted_cosine.size
    for row in rows:
        own = data.sel(layer=row["layer"], head=row["head"])
        value, width = float(own.weighted_cosine), float(own.null_weighted_cosine_width.sel(null="rotation"))
        word = "grouping" if value > width else "negative" if value < -width else "within chance"
        assert (row["reading"], row["null_rotation"]) == (word, width)
        np.testing.assert_allclose(row["symmetry_score"], 2 * float(own.symmetric_share) - 1, atol=1e-6)
    for layer, row in enumerate(described.tables["layers"]):
        assert (
            row["null_weighted_cosine"]
            == row["null_rotation"]
            == float(data.null_layer_weighted_cosine_width.sel(null="rotation", layer=layer))
        )
        words = [r["reading"] for r in rows if r["layer"] == layer]
        assert row["negative_heads"] == words.count("negative")
    assert "random rotation between query and key" in data.attrs["summary"]


def test_results_of_earlier_versions(analysed):
    """Without the new variables, chance is that of Gaussian kernels, and every table and figure is still made."""
    names = [name for name in analysed.data_vars if "null" in str(name) or "direction" in str(name)]
    names = [name for name in names if not str(name).startswith("bias")]
    older = analysed.drop_vars([*names, "layer_symmetry_score", "null"])
    assert set(older.dims) == {"layer", "head", "embed", "mode", "eigen", "pair"}
    assert metrics_of(older).head_null is None
    described = qkjax.describe(older)
    assert described.tables["heads"][0].keys() >= {"null_gaussian", "reading"}
    assert "null_rotation" not in described.tables["heads"][0]
    assert layer_rows(older)[0]["null_weighted_cosine"] == analysed.attrs["null_weighted_cosine"]
    assert head_rows(older, metrics_of(older)) == described.tables["heads"]
    for draw in described.figures.values():
        draw()
    with pytest.raises(QkjaxError, match=r"expected the result of qkjax\.analyze"):
        metrics_of(older.drop_vars("cosine"))


def test_numbers_of_the_default_model(default, default_modes):
    """The three nulls of DINOv2 ViT-S/14: heads of layer 0 have few strong modes in a shared space."""
    parts = qkjax.query_key(default)
    metrics = qkjax.measure(default_modes)
    found = head_null(default_modes, metrics.null, *parts[:2])
    low, high = found.layer.min(-1), found.layer.max(-1)
    np.testing.assert_allclose(low, [0.0053, 0.0053, 0.0075], rtol=0.05)
    np.testing.assert_allclose(high, [0.0053, 0.0161, 0.0442], rtol=0.05)
    np.testing.assert_allclose(found.head[2].max(), 0.162, atol=6e-3)  # 0.1622 with 4,000 dense heads
    words = readings(metrics.weighted_cosine, found.head[2])
    assert np.argwhere(words == "within chance").tolist() == [[6, 4], [7, 0], [9, 4]]
    assert np.argwhere(words == "negative").tolist() == [[3, 0], [5, 3], [8, 2], [9, 1], [10, 3]]
