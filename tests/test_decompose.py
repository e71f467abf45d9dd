"""The decomposition against float64 dense SVD, and what must hold of it whatever the kernels."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qkjax
from conftest import dense_svd
from qkjax.interaction.metrics import relative_gap
from qkjax.vit.tree import query_key_kernels


@pytest.fixture(autouse=True, scope="module", params=["lapack", "products"])
def way(request):
    """All that holds holds of both ways: the one for CPUs, and the one for accelerators, run here on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkjax.interaction.modes.by_lapack", lambda: request.param == "lapack")
        patch.setattr("qkjax.interaction.modes.fast_on_host", lambda _: False)
        yield request.param


@pytest.fixture(scope="module")
def default_modes(default, way):
    return qkjax.decompose(default)


@pytest.fixture(scope="session")
def dense_default(default):
    return dense_svd(*query_key_kernels(default.params))


def reconstruct(modes) -> np.ndarray:
    u, s, v = (np.asarray(x, np.float64) for x in modes)
    return np.einsum("lhdn,lhn,lhen->lhde", u, s, v)


def interaction(query, key) -> np.ndarray:
    return np.einsum("ldhk,lehk->lhde", query.astype(np.float64), key.astype(np.float64))


def assert_modes(modes, m, atol=3e-6):
    """Orthonormal, descending, and M = u s v^T; atol in units of the largest singular value."""
    scale = np.linalg.norm(m, ord=2, axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(reconstruct(modes) / scale, m / scale, atol=atol)
    for x in (modes.u, modes.v):
        gram = np.einsum("lhdn,lhdm->lhnm", x, x)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(x.shape[-1]), gram.shape), atol=5e-6)
    assert (np.diff(modes.s, axis=-1) <= 0).all()
    assert (np.asarray(modes.s) >= 0).all()


@pytest.mark.gpu
def test_shapes_and_reconstruction(kernels):
    modes = qkjax.decompose(*kernels)
    assert modes.u.shape == modes.v.shape == (3, 4, 48, 12)
    assert modes.s.shape == (3, 4, 12)
    assert modes.u.dtype == jnp.float32
    assert_modes(modes, interaction(*kernels))


def test_real_heads_agree_with_dense_svd(default, default_modes, dense_default):
    """Head by head, on trained weights: condition numbers of 1e4 a factor, s down to 1e-9 of the largest."""
    query, key = query_key_kernels(default.params)
    u, s, v = dense_default
    rank = query.shape[-1]
    s_ours = np.asarray(default_modes.s, np.float64)
    assert s[0, :, rank - 1].min() / s.max() < 1e-6, "the hard case is gone from the model"
    np.testing.assert_allclose(s_ours / s[..., :1], s[..., :rank] / s[..., :1], atol=1e-5)
    cosine = np.einsum("lhdn,lhdn->lhn", u, v)[..., :rank]
    metrics = qkjax.measure(default_modes)
    clear = ~np.asarray(metrics.degenerate)
    assert clear.mean() > 0.95
    # Rounding of 6e-8 turns vectors by 6e-8 / gap, gap > 1e-4 here; measured 4e-5.
    np.testing.assert_allclose(np.asarray(metrics.cosine)[clear], cosine[clear], atol=2e-4)
    weighted = (s[..., :rank] * cosine).sum(-1) / s[..., :rank].sum(-1)
    np.testing.assert_allclose(metrics.weighted_cosine, weighted, atol=1e-5)
    assert_modes(default_modes, interaction(query, key))


def test_nearly_equal_singular_values_agree_as_subspaces(default_modes, dense_default):
    """Where single vectors are not defined, the projector on all modes down to a clear gap is."""
    u, s, _ = dense_default
    layer, head = 0, 0
    spectrum = s[layer, head, :64] / s[layer, head, 0]
    cuts = [n for n in range(1, 64) if spectrum[n - 1] - spectrum[n] > 1e-3]
    assert cuts
    for n in cuts:
        theirs, ours = u[layer, head][:, :n], np.asarray(default_modes.u, np.float64)[layer, head][:, :n]
        np.testing.assert_allclose(np.linalg.norm(theirs.T @ ours, ord=2), 1, atol=1e-5)
        assert np.linalg.svd(theirs.T @ ours, compute_uv=False).min() > 1 - 1e-5


def test_degenerate_modes_are_marked():
    """Two equal singular values: their cosines are arbitrary, the others are not."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 8)))
    key = np.asarray(q * [8, 7, 5, 5, 3, 2, 1, 1e-7], np.float32)[None, :, None]
    metrics = qkjax.measure(qkjax.decompose(np.asarray(q, np.float32)[None, :, None], key))
    assert np.asarray(metrics.degenerate)[0, 0].tolist() == [False, False, True, True, False, False, False, True]
    np.testing.assert_allclose(metrics.gap[0, 0, :2], [1 / 8, 1 / 8], atol=1e-5)


def test_gap_counts_both_neighbours_and_zero():
    np.testing.assert_allclose(relative_gap(jnp.array([10.0, 8.0, 7.0, 0.5])), [0.2, 0.1, 0.1, 0.05], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), condition=st.floats(1, 50))
def test_invertible_change_of_basis_changes_no_mode(seed, condition):
    """Wq A and Wk A^-T have the same M: queries and keys change, modes do not (the paper, section 2)."""
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, 1, 40, 2, 8))
    left, right = (np.linalg.qr(rng.standard_normal((2, 8, 8)))[0] for _ in range(2))
    a = np.einsum("hij,j,hjk->hik", left, np.geomspace(1, 1 / condition, 8), right)
    inverse = np.linalg.inv(a).swapaxes(-1, -2)
    first = qkjax.decompose(query.astype(np.float32), key.astype(np.float32))
    second = qkjax.decompose(
        np.einsum("ldhk,hkm->ldhm", query, a).astype(np.float32),
        np.einsum("ldhk,hkm->ldhm", key, inverse).astype(np.float32),
    )
    s = np.asarray(first.s)
    tolerance = 3e-6 * condition  # A spreads the rounding of the kernels
    np.testing.assert_allclose(second.s, s, atol=tolerance * s.max())
    assert_modes(second, reconstruct(first), atol=tolerance)
    metrics = [qkjax.measure(m) for m in (first, second)]
    clear = np.asarray(metrics[0].gap) > 5e-3
    np.testing.assert_allclose(
        np.asarray(metrics[0].cosine)[clear], np.asarray(metrics[1].cosine)[clear], atol=tolerance / 5e-3
    )


def test_sign_is_deterministic(kernels):
    modes = qkjax.decompose(*kernels)
    largest = np.take_along_axis(np.asarray(modes.u), np.abs(modes.u).argmax(2)[:, :, None], 2)
    assert (largest > 0).all()
    turned = qkjax.decompose(-kernels[0], -kernels[1])
    np.testing.assert_allclose(turned.u, modes.u, atol=1e-4)
    np.testing.assert_array_equal(qkjax.decompose(*kernels).u, modes.u)


@pytest.mark.gpu
def test_options_are_their_formulas(kernels):
    query, key = kernels
    g = np.random.default_rng(1).uniform(0.2, 2, (3, 48)).astype(np.float32)
    m = interaction(query, key)
    c = np.eye(48) - 1 / 48
    folded = g[:, None, :, None] * m * g[:, None, None, :]
    assert_modes(qkjax.decompose(query, key, norm_scale=g), folded)
    assert_modes(qkjax.decompose(query, key, norm_scale=g, center=True), c @ folded @ c)
    assert_modes(qkjax.decompose(query, key, center=True), c @ m @ c)
    assert_modes(qkjax.decompose(query, key, normalize=True), m / np.sqrt(12))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", ["zero", "equal columns", "zero columns", "head_dim over embed", "one column", "tiny", "huge"]
)
def test_awkward_kernels(case):
    rng = np.random.default_rng(2)
    shape = {"head_dim over embed": (1, 6, 2, 9), "one column": (1, 6, 2, 1)}.get(case, (1, 20, 2, 5))
    query, key = rng.standard_normal((2, *shape)).astype(np.float32)
    if case == "zero":
        query[:, :, 0] = 0
    elif case == "equal columns":
        query[..., 1] = query[..., 0]
    elif case == "zero columns":
        query[..., 2:] = key[..., 3:] = 0
    elif case in ("tiny", "huge"):
        query *= 1e-15 if case == "tiny" else 1e15
        key *= 1e-15 if case == "tiny" else 1e15
    modes = qkjax.decompose(query, key)
    assert modes.s.shape == (1, 2, min(shape[1], shape[3]))
    if case == "zero":  # the other head shows that nothing leaks
        assert (np.asarray(modes.s)[:, 0] == 0).all()
        assert_modes(jax.tree.map(lambda x: x[:, 1:], modes), interaction(query, key)[:, 1:])
        np.testing.assert_allclose(np.einsum("hdn,hdm->hnm", modes.u[0], modes.u[0])[0], np.eye(5), atol=1e-5)
    else:
        assert_modes(modes, interaction(query, key))


@pytest.mark.gpu
def test_kernels_that_are_not_finite_spoil_their_own_head_alone(kernels):
    query, key = (k.copy() for k in kernels)
    query[1, 5, 2, 3] = np.nan
    key[2, 0, 0, 0] = np.inf
    modes = qkjax.decompose(query, key)
    spoilt = np.isnan(modes.s).all(-1)
    assert sorted(zip(*np.nonzero(spoilt), strict=True)) == [(1, 2), (2, 0)]
    np.testing.assert_array_equal(np.isnan(modes.u).any((2, 3)), spoilt)
    np.testing.assert_array_equal(np.asarray(modes.s)[~spoilt], np.asarray(qkjax.decompose(*kernels).s)[~spoilt])


def test_half_precision_kernels_are_decomposed_in_float32(kernels):
    rounded = [k.astype(jnp.bfloat16) for k in kernels]
    modes = qkjax.decompose(*rounded)
    assert modes.u.dtype == jnp.float32
    assert_modes(modes, interaction(*(np.asarray(k, np.float32) for k in rounded)))


@pytest.mark.gpu
def test_inside_jit_and_vmap(kernels):
    s = qkjax.decompose(*kernels).s
    np.testing.assert_allclose(jax.jit(lambda q, k: qkjax.decompose(q, k).s)(*kernels), s, rtol=1e-5)
    batched = jax.vmap(lambda q, k: qkjax.decompose(q, k).s)(*(np.stack([k, k]) for k in kernels))
    np.testing.assert_allclose(batched, np.stack([s, s]), rtol=1e-5)


def test_wrong_shapes_are_refused():
    """In a process of its own, since the type checker of the tests would be first to object."""
    code = "import numpy as np, qkjax; qkjax.decompose(np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 4, 6)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "QkjaxError: query_kernel has shape (2, 3, 4, 5) and key_kernel (2, 3, 4, 6)" in done.stderr
    code = "import numpy as np, qkjax; k = np.ones((2, 3, 4, 5)); qkjax.decompose(k, k, norm_scale=np.ones((2, 1)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "QkjaxError: norm_scale has shape (2, 1): expected (layers, embed) = (2, 3)" in done.stderr
