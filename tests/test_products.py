"""The decomposition's halves as accelerators do them, on matrices that are hard for them, against float64 LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.jacobi import jacobi_svd

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
