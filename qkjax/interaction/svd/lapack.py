"""Modes of every head by LAPACK in float64, heads shared among threads: what CPUs are good at.

XLA calls LAPACK, too, but factorises one head after the other on one core, copies each to LAPACK's order of rows and
back, and multiplies at half the speed of BLAS. In float64 the Gram matrix of a factor can be factorised in its place: a
third of the work, and still more exact than Householder's reflections in float32.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from itertools import product

import numpy as np
from jaxtyping import Float
from threadpoolctl import ThreadpoolController

EPS = float(np.finfo(np.float64).eps)
LARGEST_ERROR = 1e-7
"""How far, at most, directions from a Gram matrix may be from orthonormal: about what float32 can hold."""

Factors = Float[np.ndarray, "2 embed head_dim"]


def modes_of_head(factors: Factors) -> tuple[Float[np.ndarray, "2 embed rank"], Float[np.ndarray, "rank"]]:
    """u and v, and s, of a head with the query and key kernels as factors; NaN where these are not finite.

    With X^T X = R^T R each factor is X = (X R^-1) R, whose first part is orthonormal up to EPS times the square of X's
    condition number. Where that is too much, or there is no R, it is Householder's QR.
    """
    with np.errstate(all="ignore"):
        try:
            grams = np.swapaxes(factors, -1, -2) @ factors
            triangles = np.swapaxes(np.linalg.cholesky(grams), -1, -2)
            both, s = _core_modes(triangles)
            weights = np.linalg.solve(triangles, both)
            # ||X||^2 ||R^-1||^2, which bounds the square of the condition number: `both` are orthonormal.
            conditions = np.trace(grams, axis1=-2, axis2=-1) * np.einsum("nij,nij->n", weights, weights)
            if (conditions < LARGEST_ERROR / EPS).all():
                return factors @ weights, s
        except np.linalg.LinAlgError:  # a deficient rank
            pass
        try:
            bases, triangles = np.linalg.qr(factors)
            both, s = _core_modes(triangles)
            return bases @ both, s
        except np.linalg.LinAlgError:  # LAPACK's word for what is not finite
            _, embed, head_dim = factors.shape
            rank = min(embed, head_dim)
            return np.full((2, embed, rank), np.nan), np.full(rank, np.nan)


def _core_modes(
    triangles: Float[np.ndarray, "2 rank head_dim"],
) -> tuple[Float[np.ndarray, "2 rank rank"], Float[np.ndarray, "rank"]]:
    """Left and right singular vectors, as columns, and singular values of Rq Rk^T."""
    left, s, right = np.linalg.svd(triangles[0] @ triangles[1].T)
    return np.stack([left, right.T]), s


def modes_of_heads(
    factors: Callable[[int, int], Factors], shape: tuple[int, int, int, int]
) -> tuple[
    Float[np.ndarray, "layers heads embed rank"],
    Float[np.ndarray, "layers heads rank"],
    Float[np.ndarray, "layers heads embed rank"],
]:
    """u, s and v of all heads, in float32, with the sign that `qkjax.interaction.modes.Modes` says.

    Args:
      factors: those of a layer and a head, in float64.
      shape: layers, heads, embed, head_dim.
    """
    layers, heads, embed, head_dim = shape
    rank = min(embed, head_dim)
    u, s, v = (_aligned((layers, heads, *rest)) for rest in ((embed, rank), (rank,), (embed, rank)))

    def head(at: tuple[int, int]) -> None:
        (u[at], v[at]), s[at] = modes_of_head(factors(*at))
        # The entry of largest magnitude is the highest one, or it is the lowest.
        sign = np.where(u[at].max(0) + u[at].min(0) < 0, np.float32(-1), np.float32(1))
        u[at] *= sign
        v[at] *= sign

    with one_blas_thread(), ThreadPoolExecutor(_cores()) as threads:  # more threads than cores would be slower
        for _ in threads.map(head, product(range(layers), range(heads))):
            pass
    return u, s, v


def _aligned(shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """An array that begins where a cache line of 64 bytes does: such ones jax takes as they are, without a copy."""
    size = math.prod(shape)
    room = np.empty(size + 16, np.float32)
    start = -room.ctypes.data % 64 // room.itemsize
    return room[start : start + size].reshape(shape)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> AbstractContextManager:
    """Within it BLAS adds no threads of its own to those that call it, ours or XLA's. They would only fight: 2 to 5
    times slower on 2 cores, and far more beside other processes, since OpenBLAS's threads wait in loops."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 (XLA calls LAPACK in the library that this loads)

    return ThreadpoolController()
