"""Computes the modes of every head with LAPACK in float64; threads share the heads, which is fast on CPUs.

XLA also calls LAPACK. But XLA factorises one head after the other on one core, copies each head to LAPACK's memory
layout and back, and multiplies at half the speed of BLAS. In float64, the Gram matrix of a kernel can be factorised
instead of the kernel itself. The factorisation of the Gram matrix takes a third of the work of Householder reflections.
In float64, this factorisation is still more accurate than Householder reflections in float32.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from itertools import product

import jax
import numpy as np
from jaxtyping import Array, Float
from threadpoolctl import ThreadpoolController

from qkjax.interaction.frame import fold

EPS = float(np.finfo(np.float64).eps)
LARGEST_ERROR = 1e-7
"""Directions that are computed from a Gram matrix may deviate from orthonormality by at most this value, which is about
the rounding error of float32."""

COMPILE_SECONDS = 10.0
"""Roughly the time that the program of `decompose` takes to compile for a GPU: 5 to 13 s on an NVIDIA H200."""
HOST_RATE = 2.5e10
"""Operations per second per core in `modes_of_head`: 2.2e10 to 4.1e10 on an AMD EPYC (Zen 4) for ViT-S to 7B."""

Factors = Float[np.ndarray, "2 embed head_dim"]
Kernels = Float[np.ndarray, "layers embed heads head_dim"]


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


def by_lapack() -> bool:
    """Whether jitted programs of this process run on a CPU, where LAPACK is the fastest method."""
    return jax.default_backend() == "cpu"


def fast_on_host(arrays: Sequence[Array | np.ndarray | None]) -> bool:
    """Whether the CPU decomposes kernels in less time than a program for an accelerator takes to compile.

    Arrays on an accelerator are decomposed on that accelerator.

    Args:
      arrays: query kernel, key kernel and norm scale.
    """
    layers, embed, heads, head_dim = arrays[0].shape
    operations = layers * heads * (8 * embed * head_dim**2 + 50 * head_dim**3)  # two Gram matrices and products; an SVD
    on_host = all(x is None or isinstance(x, np.ndarray) for x in arrays)
    return on_host and operations < COMPILE_SECONDS * HOST_RATE * cores()


def cpu_device() -> jax.Device | None:
    """The CPU as a device of JAX; None if JAX may not use it, as with JAX_PLATFORMS=cuda."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def modes_of_kernels(
    query_kernel: Kernels,
    key_kernel: Kernels,
    norm_scale: Float[np.ndarray, "layers embed"] | None,
    center: bool,
    normalize: bool,
) -> tuple[
    Float[np.ndarray, "layers heads embed rank"],
    Float[np.ndarray, "layers heads rank"],
    Float[np.ndarray, "layers heads embed rank"],
]:
    """Computes u, s and v of all heads in float32, with the sign that `qkjax.interaction.modes.Modes` specifies.

    The arguments are those of `qkjax.interaction.modes.decompose`.
    """
    layers, embed, heads, head_dim = query_kernel.shape
    rank = min(embed, head_dim)
    u, s, v = (_aligned((layers, heads, *rest)) for rest in ((embed, rank), (rank,), (embed, rank)))

    def factors(layer: int, head: int) -> Factors:
        both = np.empty((2, embed, head_dim))
        both[0], both[1] = query_kernel[layer, :, head], key_kernel[layer, :, head]
        scale = None if norm_scale is None else norm_scale[layer]
        both = np.moveaxis(fold(np.moveaxis(both, 0, 1), scale, center), 1, 0)
        if normalize:
            both[0] /= np.sqrt(head_dim)
        return both

    def decompose(index: tuple[int, int]) -> None:
        with np.errstate(over="ignore"):  # `float_range` rescales such heads
            (u[index], v[index]), s[index] = modes_of_head(factors(*index))
        # The entry of largest magnitude is either the maximum or the minimum.
        sign = np.where(u[index].max(0) + u[index].min(0) < 0, np.float32(-1), np.float32(1))
        u[index] *= sign
        v[index] *= sign

    with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:  # more threads than cores would be slower
        for _ in threads.map(decompose, product(range(layers), range(heads))):
            pass
    return u, s, v


def _aligned(shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """An empty array aligned to cache lines of 64 bytes, so that JAX can use the array without a copy."""
    size = math.prod(shape)
    buffer = np.empty(size + 16, np.float32)
    start = -buffer.ctypes.data % 64 // buffer.itemsize
    return buffer[start : start + size].reshape(shape)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> AbstractContextManager:
    """A context manager that keeps BLAS single-threaded, because this module and XLA call BLAS from several threads.

    Additional BLAS threads would compete for cores; on 2 cores, they make calls 2 to 5 times slower. If other processes
    are running, calls are even slower, because the threads of OpenBLAS wait in busy loops.
    """
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 (XLA calls LAPACK in the library that this loads)

    return ThreadpoolController()
