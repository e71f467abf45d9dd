"""The decomposition's halves as accelerators do them, on matrices that are hard for them, against float64 LAPACK."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted_compilations

import qkjax
from qkjax.interaction.difference import _overlaps, difference
from qkjax.interaction.edit import EDITS, edit
from qkjax.interaction.null import null_band
from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.jacobi import jacobi_svd
from qkjax.interaction.svd.lapack import fast_on_host
from qkjax.interaction.svd.thin_qr import thin_qr
from qkjax.train.constraints import constraint
from qkjax.train.penalty import weighted_cosine

RANK = 33  # odd: one column has no partner


def orthonormal(rng, rows=RANK, columns=RANK) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def hard() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    graded = {f"1e-{e}": orthonormal(rng) * np.logspace(0, -e, RANK) @ orthonormal(rng) for e in (1, 4, 8, 14, 30)}
    return graded | {
        "zeros": np.zeros((RANK, RANK)),
        "ones": np.ones((RANK, RANK)),
        "identity": np.eye(RANK),
        "diagonal, one of them 0": np.diag(np.arange(RANK) * 1.0),
        "projection": orthonormal(rng)[:, :5] @ orthonormal(rng)[:5],
        "all alike": orthonormal(rng),
        "random": rng.standard_normal((RANK, RANK)),
    }


@pytest.mark.gpu
def test_singular_values_and_vectors_of_hard_matrices():
    """s to 2e-6 of the largest, the product to 2e-6 of it, both sides orthonormal to 3e-6; all in one batch, so that
    the easy ones see as many rounds as the hard ones."""
    matrices = np.stack(list(hard().values()))
    u, s, vt = (np.asarray(x, np.float64) for x in jax.jit(jacobi_svd)(jnp.asarray(matrices, jnp.float32)))
    wanted = np.linalg.svd(matrices, compute_uv=False)
    largest = np.maximum(wanted[:, 0], 1e-30)
    for name, own, theirs, size in zip(hard(), s, wanted, largest, strict=True):
        np.testing.assert_allclose(own, theirs, atol=2e-6 * size, err_msg=name)
    assert (np.abs((u * s[:, None]) @ vt - matrices).max((1, 2)) <= 2e-6 * largest).all()
    for side in (u, np.swapaxes(vt, 1, 2)):
        np.testing.assert_allclose(np.swapaxes(side, 1, 2) @ side, np.eye(RANK)[None].repeat(len(u), 0), atol=3e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e6, 1e8, 1e30])
def test_thin_qr_of_any_condition(condition):
    """Q orthonormal to 1e-6, X = Q R to 1e-6 of ||X||, whatever the condition number; beside a well conditioned one."""
    rng = np.random.default_rng(1)
    x = orthonormal(rng, 200, 24) * np.geomspace(1, 1 / condition, 24) @ orthonormal(rng, 24, 24)
    both = jnp.asarray(np.stack([x, rng.standard_normal((200, 24))]), jnp.float32)
    q, r = (np.asarray(y, np.float64) for y in jax.jit(cholesky_qr)(both))
    np.testing.assert_allclose(np.swapaxes(q, 1, 2) @ q, np.eye(24)[None].repeat(2, 0), atol=1e-6)
    left = np.linalg.norm(q @ r - np.asarray(both, np.float64), axis=(1, 2))
    assert (left < 1e-6 * np.linalg.norm(np.asarray(both, np.float64), axis=(1, 2))).all()


@pytest.mark.gpu
def test_a_matrix_that_is_not_finite_spoils_itself_alone():
    rng = np.random.default_rng(2)
    tall = rng.standard_normal((3, 50, 12)).astype(np.float32)
    tall[1, 3, 4] = np.nan
    q, _ = jax.jit(cholesky_qr)(tall)
    _, s, _ = jax.jit(jacobi_svd)(jnp.asarray(tall[:, :12]))
    for found in (np.asarray(q), np.asarray(s)):
        assert np.isnan(found[1]).all()
        assert np.isfinite(found[[0, 2]]).all()


@pytest.fixture
def accelerator(monkeypatch):
    """jitted programs take the way of accelerators, here on a CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()  # programs may have been traced by the way of CPUs
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def model():
    """Query and key parameters of a small model with biases, modes, and measures, computed by LAPACK."""
    rng = np.random.default_rng(3)
    kernels = rng.standard_normal((2, 2, 24, 3, 6)).astype(np.float32)
    biases = rng.standard_normal((2, 2, 3, 6)).astype(np.float32)
    norm = np.ones((2, 24), np.float32)
    modes = qkjax.decompose(*kernels)
    return qkjax.QueryKey(*kernels, *biases, norm, 0 * norm), modes, qkjax.measure(modes)


def dense(query, key) -> np.ndarray:
    return np.einsum("ldhk,lehk->lhde", *(np.asarray(x, np.float64) for x in (query, key)))


@pytest.fixture(scope="module")
def edits(model):
    """All edits by LAPACK, with and without wide heads: partly edited modes, and one head that is not edited."""
    weights = np.random.default_rng(4).uniform(size=model[1].s.shape).astype(np.float32)
    weights[0, 1] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "cpu")  # on an accelerator, too, LAPACK's way is the reference
        jax.clear_caches()
        results = {kind: edit(*model[:2], kind, weights) for kind in EDITS}
        return weights, results, edit(*model[:2], "symmetric", weights, 13)


def test_edits_agree_with_those_by_lapack(model, edits, accelerator):
    """M' and the key bias term to 4e-6 of the largest entry, which factors that are not unique must give."""
    weights, wanted, wide = edits
    results = {kind: edit(*model[:2], kind, weights) for kind in wanted}
    assert np.abs(results["drop"].query_kernel - wanted["drop"].query_kernel).max() > 0, "another way was taken"
    pairs = [*((results[kind], wanted[kind]) for kind in wanted), (edit(*model[:2], "symmetric", weights, 13), wide)]
    for ours, theirs in pairs:
        m, reference = dense(*ours[:2]), dense(*theirs[:2])
        np.testing.assert_allclose(m, reference, atol=4e-6 * np.abs(reference).max())
        terms = (np.einsum("ldhk,lhk->lhd", x.key_kernel, np.asarray(x.query_bias, np.float64)) for x in (ours, theirs))
        np.testing.assert_allclose(*terms, atol=2e-5)
        np.testing.assert_allclose(ours.retained, theirs.retained, atol=1e-5)


def test_models_in_numpy_arrays_are_decomposed_on_the_cpu(model, accelerator):
    """To the same bits as without an accelerator, and without a program that would have to be compiled; the same holds
    of measures and chance levels. Arrays of JAX, and kernels that take LAPACK a minute, go to the accelerator."""
    parts, modes, measures = model
    null_band.cache_clear()
    with counted_compilations() as counts:
        found = qkjax.decompose(parts)
        measured = qkjax.measure(found)
    assert not counts["_decompose"]
    jax.tree.map(np.testing.assert_array_equal, tuple(found), tuple(modes))
    jax.tree.map(np.testing.assert_array_equal, tuple(measured), tuple(measures))
    with counted_compilations() as counts:
        on_device = qkjax.decompose(*map(jnp.asarray, parts[:2]))
    assert counts["_decompose"] == 1
    np.testing.assert_allclose(on_device.s, modes.s, atol=2e-6 * modes.s.max())
    large = np.broadcast_to(np.float32(0), (64, 2**13, 1024, 128))
    assert fast_on_host(parts[:2])
    assert not fast_on_host((large, large))


def test_differences_agree_with_float64(accelerator):
    """Cosines of principal angles, of which some are 0 and some 1, to 2e-6."""
    rng = np.random.default_rng(5)
    basis = orthonormal(rng, 40, 40)
    first, second = basis[:, :8], np.concatenate([basis[:, 4:6], orthonormal(rng, 40, 6)], axis=1)
    kernels = [np.asarray(np.stack([x, x[:, ::-1]])[:, :, None], np.float32) for x in (first, second)]
    modes = [qkjax.decompose(x, x) for x in kernels]
    found = difference(*modes)
    cosines = np.linalg.svd(np.linalg.qr(first)[0].T @ np.linalg.qr(second)[0], compute_uv=False)
    np.testing.assert_allclose(found.query_angles, np.broadcast_to(cosines, found.query_angles.shape), atol=2e-6)
    np.testing.assert_allclose(found.key_angles, np.broadcast_to(cosines, found.key_angles.shape), atol=2e-6)


@pytest.mark.parametrize("condition", [1, 30, 1e3])
def test_derivative_of_thin_qr(condition, accelerator):
    """Against central differences of Householder QR in float64, forwards and backwards."""
    rng = np.random.default_rng(6)
    x = orthonormal(rng, 20, 7) * np.geomspace(1, 1 / condition, 7) @ orthonormal(rng, 7, 7)
    change, weights = rng.standard_normal((20, 7)) / condition, rng.standard_normal((20 + 7, 7))

    def positive(x):
        q, r = np.linalg.qr(x)
        signs = np.sign(np.diag(r))
        return np.concatenate([q * signs, r * signs[:, None]])

    def both(x):
        return jnp.concatenate(thin_qr(x))

    step = 1e-6
    wanted = (positive(x + step * change) - positive(x - step * change)) / (2 * step)
    x, change = (jnp.asarray(a, jnp.float32) for a in (x, change))
    _, forwards = jax.jit(lambda a, b: jax.jvp(both, (a,), (b,)))(x, change)
    tolerance = 2e-6 * condition * max(1, np.abs(wanted).max())
    np.testing.assert_allclose(forwards, wanted, atol=tolerance)
    gradient = jax.jit(jax.grad(lambda a: (both(a) * jnp.asarray(weights, jnp.float32)).sum()))(x)
    inner = (np.asarray(gradient, np.float64) * np.asarray(change, np.float64)).sum()
    assert inner == pytest.approx((wanted * weights).sum(), abs=20 * tolerance)


def training_terms(kernels):
    """Values and gradients of the penalty and of the two constraints that factorise."""

    def pull(query, key):
        return ((weighted_cosine(query, key) - 0.3) ** 2).sum()

    results = {"pull": jax.jit(jax.value_and_grad(pull, argnums=(0, 1)))(*kernels)}
    shape = kernels.shape[2:]
    weights = np.random.default_rng(8).standard_normal((2, *shape)).astype(np.float32)
    for name in ("orthogonal", "flat"):
        own = constraint(name, shape[2])
        parameters = {"query": kernels[0, 0], "key": kernels[1, 0], "strength": 1 + jnp.arange(shape[1]) / 2}
        parameters = {part: parameters[part] for part in own.parameters}

        def value(p, own=own):
            made = own.kernels(p, shape)
            return sum((w * kernel).sum() for w, kernel in zip(weights, made, strict=True)), made

        results[name] = jax.jit(jax.value_and_grad(value, has_aux=True))(parameters)
    return results


@pytest.fixture(scope="module")
def training():
    kernels = np.random.default_rng(7).standard_normal((2, 2, 32, 3, 8)).astype(np.float32)
    return kernels, training_terms(kernels)


def test_training_terms_agree_with_those_by_lapack(training, accelerator):
    """Kernels, values and gradients to 4e-6 of the largest entry."""
    kernels, wanted = training
    for name, result in training_terms(kernels).items():
        for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(wanted[name]), strict=True):
            largest = max(1, np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, atol=4e-6 * largest, err_msg=name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_accelerators_call_no_library_qr_or_svd(platform, model, training, accelerator):
    """Edits, comparisons, the penalty and the constraints, with their derivatives, lowered without such a device."""
    parts, modes, _ = model
    kernels, _ = training

    def calls(function, *arguments) -> set[str]:
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
        return set(re.findall(r"custom_call @(\w*(?:qr|svd|Qr|Householder)\w*)", lowered.as_text()))

    def constrained(name, query, key):
        parameters = {"query": query, "key": key, "strength": jnp.ones(3)}
        return sum(kernel.sum() for kernel in constraint(name, 8).kernels(parameters, kernels.shape[2:]))

    assert calls(jnp.linalg.qr, kernels[0, 0])
    assert not calls(lambda weights: edit(parts, modes, "rotate", weights), np.ones(modes.s.shape, np.float32))
    assert not calls(lambda _: _overlaps(modes, modes), 0)
    assert not calls(jax.grad(lambda query, key: weighted_cosine(query, key).sum()), *kernels)
    for name in ("orthogonal", "flat"):
        assert not calls(jax.grad(partial(constrained, name)), *kernels[:, 0])
