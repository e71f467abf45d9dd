"""Computes the modes of every head with LAPACK in float64; threads share the heads, which is fast on CPUs.

XLA calls LAPACK, too, but factorises one head after the other on one core, copies each head to LAPACK's memory layout
and back, and multiplies at half the speed of BLAS. In float64, the Gram matrix of a kernel can be factorised instead of
the kernel itself. Factorising the Gram matrix takes a third of the work, and is still more accurate than Householder
reflections in float32.
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
"""Directions that are computed from a Gram matrix may deviate from orthonormality by at most this value, which is about
the rounding error of float32."""

Factors = Float[np.ndarray, "2 embed head_dim"]


def modes_of_head(factors: Factors) -> tuple[Float[np.ndarray, "2 embed rank"], Float[np.ndarray, "rank"]]:
    """Computes the modes of one head from `factors`, its stacked query and key kernels; returns stacked u and v, and s.

    If X^T X = R^T R, each kernel is X = (X R^-1) R. The columns of X R^-1 are orthonormal up to EPS times the squared
    condition number of X. If this error is too large, or R does not exist, Householder QR is used. If the kernels are
    not finite, all values of the result are NaN.
    """
    with np.errstate(all="ignore"):
        try:
            grams = np.swapaxes(factors, -1, -2) @ factors
            triangles = np.swapaxes(np.linalg.cholesky(grams), -1, -2)
            both, s = _core_modes(triangles)
            weights = np.linalg.solve(triangles, both)
            # ||X||^2 ||R^-1||^2 bounds the squared condition number, since `both` are orthonormal.
            conditions = np.trace(grams, axis1=-2, axis2=-1) * np.einsum("nij,nij->n", weights, weights)
            if (conditions < LARGEST_ERROR / EPS).all():
                return factors @ weights, s
        except np.linalg.LinAlgError:  # X is rank-deficient
            pass
        try:
            bases, triangles = np.linalg.qr(factors)
            both, s = _core_modes(triangles)
            return bases @ both, s
        except np.linalg.LinAlgError:  # LAPACK fails on values that are not finite
            _, embed, head_dim = factors.shape
            rank = min(embed, head_dim)
            return np.full((2, embed, rank), np.nan), np.full(rank, np.nan)


def _core_modes(
    triangles: Float[np.ndarray, "2 rank head_dim"],
) -> tuple[Float[np.ndarray, "2 rank rank"], Float[np.ndarray, "rank"]]:
    """The left and right singular vectors (both as columns), and the singular values, of Rq Rk^T."""
    left, s, right = np.linalg.svd(triangles[0] @ triangles[1].T)
    return np.stack([left, right.T]), s


def modes_of_heads(
    factors: Callable[[int, int], Factors], shape: tuple[int, int, int, int]
) -> tuple[
    Float[np.ndarray, "layers heads embed rank"],
    Float[np.ndarray, "layers heads rank"],
    Float[np.ndarray, "layers heads embed rank"],
]:
    """Computes u, s and v of all heads in float32, with the sign that `qkjax.interaction.modes.Modes` specifies.

    Args:
      factors: function that takes a layer and a head, and returns the query and key kernels of the head in float64.
      shape: (layers, heads, embed, head_dim).
    """
    layers, heads, embed, head_dim = shape
    rank = min(embed, head_dim)
    u, s, v = (_aligned((layers, heads, *rest)) for rest in ((embed, rank), (rank,), (embed, rank)))

    def head(index: tuple[int, int]) -> None:
        with np.errstate(over="ignore"):  # `float_range` rescales such heads
            (u[index], v[index]), s[index] = modes_of_head(factors(*index))
        # The entry of largest magnitude is either the maximum or the minimum.
        sign = np.where(u[index].max(0) + u[index].min(0) < 0, np.float32(-1), np.float32(1))
        u[index] *= sign
        v[index] *= sign

    with one_blas_thread(), ThreadPoolExecutor(_cores()) as threads:  # more threads than cores would be slower
        for _ in threads.map(head, product(range(layers), range(heads))):
            pass
    return u, s, v


def _aligned(shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """An empty array aligned to cache lines of 64 bytes, so that JAX can use the array without a copy."""
    size = math.prod(shape)
    buffer = np.empty(size + 16, np.float32)
    start = -buffer.ctypes.data % 64 // buffer.itemsize
    return buffer[start : start + size].reshape(shape)


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> AbstractContextManager:
    """A context in which BLAS starts no threads of its own, because this module and XLA call BLAS from several threads.

    Additional BLAS threads would compete for cores; on 2 cores, they make calls 2 to 5 times slower. If other processes
    are running, calls are even slower, because the threads of OpenBLAS wait in busy loops.
    """
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 (XLA calls LAPACK in the library that this loads)

    return ThreadpoolController()
