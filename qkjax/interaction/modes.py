"""Singular modes of the query-key interaction M = Wq Wk^T, head by head, without forming M."""

from contextlib import nullcontext
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError

Kernels = Float[Array | np.ndarray, "layers embed heads head_dim"]


class Modes(NamedTuple):
    """Singular modes of every head: M = sum_n s_n u_n v_n^T, strongest first.

    A token y sends y . u_n as a query and y . v_n as a key; s_n is the strength of their product.
    (u_n, v_n) have one sign together: the entry of u_n that is largest in magnitude is positive.
    """

    u: Float[Array, "layers heads embed rank"]
    s: Float[Array, "layers heads rank"]
    v: Float[Array, "layers heads embed rank"]


def fold(
    query_kernel: Kernels,
    key_kernel: Kernels,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
    center: bool = False,
    normalize: bool = False,
) -> tuple[Kernels, Kernels]:
    """Kernels whose product is M in the frame asked for; see `decompose` for the formulas."""
    pair = jnp.stack([jnp.asarray(query_kernel, jnp.float32), jnp.asarray(key_kernel, jnp.float32)])
    if norm_scale is not None:
        pair = pair * jnp.asarray(norm_scale, jnp.float32)[None, :, :, None, None]
    if center:
        pair = pair - pair.mean(axis=2, keepdims=True)
    query, key = pair
    return (query / np.sqrt(query.shape[-1]).astype(np.float32), key) if normalize else (query, key)


def _decompose_head(query: Float[Array, "embed head_dim"], key: Float[Array, "embed head_dim"]) -> Modes:
    """One head: thin QR of both factors, SVD of the small core, mapped back.

    Wq = Qq Rq, Wk = Qk Rk, Rq Rk^T = A S B^T  =>  u = Qq A, v = Qk B.
    Householder QR never squares a condition number, so the small modes survive float32.
    """
    # One stacked QR, then the SVD that needs its result: XLA may deadlock on CPUs with few cores
    # when two batched LAPACK calls of one program can run at the same time.
    bases, cores = jnp.linalg.qr(jnp.stack([query, key]))
    left, s, right = jnp.linalg.svd(jnp.matmul(cores[0], cores[1].T, precision="highest"))
    u, v = jnp.matmul(bases, jnp.stack([left, right.T]), precision="highest")
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0, keepdims=True), axis=0)
    sign = jnp.where(largest < 0, -1.0, 1.0).astype(u.dtype)
    return Modes(u * sign, s, v * sign)


@partial(jax.jit, static_argnames=("center", "normalize"))
def _decompose(query_kernel, key_kernel, norm_scale, center, normalize) -> Modes:
    query, key = fold(query_kernel, key_kernel, norm_scale, center, normalize)
    over_heads = jax.vmap(_decompose_head, in_axes=1)
    return jax.vmap(over_heads)(query, key)


def decompose(
    query_kernel: Kernels,
    key_kernel: Kernels,
    *,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
    center: bool = False,
    normalize: bool = False,
) -> Modes:
    """Singular modes of M = Wq Wk^T of all layers and heads, in one jitted call, in float32.

    With x the normalised token (mean 0, variance 1) and y = g * x + b what attention sees:

    - by default M acts on y, as in the paper (section 2.2);
    - `norm_scale=g` folds the LayerNorm scale: diag(g) M diag(g), which acts on x;
    - `center` takes out the mean direction, which LayerNorm removes from x: with C = I - 11^T / D,
      C diag(g) M diag(g) C; without `norm_scale`, g = 1;
    - `normalize` divides M by sqrt(head_dim), so that s is in units of the attention logit.

    Args:
      query_kernel, key_kernel: (layers, embed, heads, head_dim), floating point of any width.
      norm_scale: (layers, embed), scale of the LayerNorm before attention.

    Returns:
      `Modes` u (layers, heads, embed, rank), s (layers, heads, rank), v like u, with
      rank = min(embed, head_dim). s is accurate to about 1e-6 of the largest of its head. Where
      neighbouring s are nearly equal single vectors are not defined, only the space they span;
      `measure` marks such modes.

    Raises:
      QkjaxError: the kernels are not of one shape with four axes.
    """
    if query_kernel.ndim != 4 or query_kernel.shape != key_kernel.shape:
        raise QkjaxError(
            "decompose wants two kernels (layers, embed, heads, head_dim), "
            f"got {query_kernel.shape} and {key_kernel.shape}"
        )
    with _one_blas_thread():
        modes = _decompose(query_kernel, key_kernel, norm_scale, center, normalize)
        return jax.block_until_ready(modes) if jax.default_backend() == "cpu" else modes


@cache
def _blas():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_blas_thread():
    """On CPUs XLA runs one LAPACK call per head on its own threads; threads that BLAS adds only
    fight with them (2 to 5 times slower on 2 cores)."""
    return _blas().limit(limits=1, user_api="blas") if jax.default_backend() == "cpu" else nullcontext()
