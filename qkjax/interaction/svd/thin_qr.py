"""Thin QR for jitted programs on any platform: LAPACK on CPUs, and matrix products on accelerators."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.lapack import by_lapack

dot = partial(jnp.matmul, precision="highest")


def thin_qr(
    x: Float[Array, "*batch embed columns"],
) -> tuple[Float[Array, "*batch embed rank"], Float[Array, "*batch rank columns"]]:
    """Factorises X = Q R with orthonormal columns in Q; the function is differentiable if X has full rank.

    The signs of the diagonal of R are those of LAPACK on CPUs, and positive on accelerators.
    """
    if by_lapack():
        return jnp.linalg.qr(x)
    return cholesky_qr(x) if x.shape[-2] < x.shape[-1] else _by_products(x)


@jax.custom_jvp
def _by_products(x):
    """`cholesky_qr` with a derivative, which its loop does not have in reverse mode."""
    return cholesky_qr(x)


@_by_products.defjvp
def _derivative(primals, tangents):
    """The derivative of QR (Walter and Lehmann 2010), as in `jnp.linalg.qr`, whose products GPUs round to TF32.

    With A = Q^T dX R^-1, split into a skew-symmetric part O and an upper triangle A - O: dQ = dX R^-1 - Q (A - O) and
    dR = (A - O) R.
    """
    ((x,), (change,)) = primals, tangents
    q, r = _by_products(x)
    change = jax.lax.linalg.triangular_solve(
        r, change
    )  # dX R^-1; the lower triangle of R, which is rounding, is not read
    inner = dot(jnp.swapaxes(q, -1, -2), change)
    lower = jnp.tril(inner, -1)
    upper = inner - (lower - jnp.swapaxes(lower, -1, -2))
    return (q, r), (change - dot(q, upper), dot(upper, r))
