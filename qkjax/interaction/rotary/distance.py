"""Grouping as a function of distance: the weighted cosine of M(delta) for every offset of a grid.

The weighted cosine of M(delta) is tr M(delta) / ||M(delta)||_nuclear. The trace is a Fourier series of the offset,

    tr M(delta) = sum_a cos theta_a(delta) tr C_a + sin theta_a(delta) tr S_a
    tr C_a = q_a . k_a + q_a' . k_a',   tr S_a = q_a . k_a' - q_a' . k_a

The column spaces of Wq R(delta) and Wk do not depend on the offset: with Wq = Qq Rq and Wk = Qk Rk, the singular values
of M(delta) are those of the d x d core Rq R(delta) Rk^T. One factorisation of the kernels therefore serves all offsets.

M(-delta) = Wq R(delta)^T Wk^T is the transpose of M(delta) only if Wq = Wk. In general its singular values differ, so
every offset needs its own core.

The cost is that of the cores and their singular values, about (2 + 8 / 3) d^3 floating-point operations per head and
offset. For DINOv3 ViT-B with 14 x 14 patches (144 heads, 729 offsets, d = 64) this is 128 GFLOP.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.interaction.rotary.place import scaled_heads
from qkjax.interaction.rotary.rotation import Angles, Pairs, by_plane, grid_steps, offsets, rotate
from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.jacobi import jacobi_svd
from qkjax.interaction.svd.lapack import by_lapack, cores, one_blas_thread

CHUNK = 32
"""Largest number of offsets whose cores are in memory at a time."""
ENTRIES = 2**25
"""Largest number of entries of the cores of all heads that are in memory at a time within a jitted program."""

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]
OffsetAngles = Float[Array | np.ndarray, "layers heads offsets planes"]


class ByDistance(NamedTuple):
    """The mean of a map of offsets over all pairs of positions at a distance.

    Attributes:
      distance: distance between the two positions in patches, rounded to an integer: 0, 1, ...
      pairs: number of pairs of positions at each distance.
      value: mean over these pairs.
    """

    distance: Int[np.ndarray, "distances"]
    pairs: Int[np.ndarray, "distances"]
    value: Float[np.ndarray, "layers heads distances"]


def offset_angles(angles: Angles, grid: tuple[int, ...]) -> Float[np.ndarray, "*heads offsets planes"]:
    """The angles of all offsets of a grid, in the order of `offsets`.

    Raises:
      QkjaxError: the angles do not fill the grid or are not linear in the coordinates.
    """
    return offsets(grid).reshape(-1, len(grid)).astype(np.float64) @ grid_steps(angles, grid)


def traces(
    query: Kernel, key: Kernel, pairs: Pairs = "half"
) -> tuple[Float[Array, "layers heads planes"], Float[Array, "layers heads planes"]]:
    """tr C_a and tr S_a of each plane, the coefficients of tr M(delta)."""
    q, k = (by_plane(x, pairs) for x in (query, key))
    return (q * k).sum((1, 3)), (q[..., 0, :] * k[..., 1, :] - q[..., 1, :] * k[..., 0, :]).sum(1)


@partial(jax.jit, static_argnames="lapack")
def _nuclear_norms(query, key, angles, lapack: bool) -> Float[Array, "layers heads offsets"]:
    """Sums of the singular values of the cores, in float32, a few offsets at a time; columns form "half" pairs."""
    both = jnp.moveaxis(jnp.stack([query, key]).astype(jnp.float32), 3, 2)
    triangles = (jnp.linalg.qr if lapack else cholesky_qr)(both)[1]
    first, second = triangles[0][:, :, None], jnp.swapaxes(triangles[1], -1, -2)[:, :, None]

    def chunk(angles):
        rotated = rotate(first, jnp.moveaxis(angles, 0, 2)[..., None, :])
        core = jnp.matmul(rotated, second, precision="highest")
        return (jnp.linalg.svd(core, compute_uv=False) if lapack else jacobi_svd(core)[1]).sum(-1)

    count = angles.shape[2]
    size = max(1, min(CHUNK, ENTRIES // first.size))
    filled = jnp.pad(jnp.moveaxis(angles, 2, 0), [(0, -count % size), (0, 0), (0, 0), (0, 0)])
    result = jax.lax.map(chunk, filled.reshape(-1, size, *filled.shape[1:]))
    return jnp.moveaxis(result, 0, 2).reshape(*result.shape[1:3], -1)[..., :count]


def _rotated(x: Float[np.ndarray, "rows head_dim"], angles: Float[np.ndarray, "offsets planes"]) -> np.ndarray:
    """`rotate` for many angles and "half" pairs, without the intermediate arrays that would take most of the time."""
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    (first, second), half = np.split(x, 2, axis=1), x.shape[1] // 2
    result = np.empty((len(angles), *x.shape))
    result[..., :half] = first * cosine - second * sine
    result[..., half:] = second * cosine + first * sine
    return result


def _nuclear_norms_on_threads(query, key, angles) -> Float[np.ndarray, "layers heads offsets"]:
    """Sums of the singular values of the cores with LAPACK in float64: each thread computes one head at a time."""
    layers, _, heads, _ = query.shape
    result = np.empty((layers, heads, angles.shape[2]))

    def head(index: tuple[int, int]) -> None:
        kernels = (np.asarray(x[index[0], :, index[1]], np.float64) for x in (query, key))
        try:
            first, second = (np.linalg.qr(x, mode="r") for x in kernels)
            for part in range(0, angles.shape[2], CHUNK):
                rotated = _rotated(first, angles[index][part : part + CHUNK])
                result[index][part : part + CHUNK] = np.linalg.svd(rotated @ second.T, compute_uv=False).sum(-1)
        except np.linalg.LinAlgError:  # LAPACK fails on values that are not finite
            result[index] = np.nan

    with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:
        for _ in threads.map(head, product(range(layers), range(heads))):
            pass
    return result


def nuclear_norms(
    query: Kernel, key: Kernel, angles: Float[Array | np.ndarray, "*heads offsets planes"], pairs: Pairs = "half"
) -> Float[Array | np.ndarray, "layers heads offsets"]:
    """The sum of the singular values of M(delta) for each offset.

    On a CPU, threads call LAPACK in float64. On accelerators and within jitted programs, the computation is one float32
    program.
    """
    layers, _, heads, _ = query.shape
    query, key = (x.reshape(*x.shape[:-2], -1) for x in (by_plane(query, pairs), by_plane(key, pairs)))
    traced = any(isinstance(x, jax.core.Tracer) for x in (query, key, angles))
    if traced or not by_lapack():
        full = jnp.broadcast_to(jnp.asarray(angles, jnp.float32), (layers, heads, *angles.shape[-2:]))
        return _nuclear_norms(query, key, full, by_lapack())
    full = np.broadcast_to(np.asarray(angles, np.float64), (layers, heads, *angles.shape[-2:]))
    return _nuclear_norms_on_threads(np.asarray(query), np.asarray(key), full)


def cosine_by_offset(
    query: Kernel, key: Kernel, angles: Angles, grid: tuple[int, ...], pairs: Pairs = "half"
) -> Float[np.ndarray, "layers heads *offset_grid"]:
    """Computes the weighted cosine of M(delta) for every offset of a grid.

    Args:
      query, key: kernels before the rotation.
      angles: angles of all positions in the grid, in row-major order.
      grid: number of positions along each axis, such as (rows, columns).
      pairs: see `Pairs`.

    Returns:
      A map with one value per offset; `offsets` lists the offsets. A head is NaN if its M(delta) is zero. A value near
      1 means that tokens at this offset group: a query matches keys with a similar content.

    Raises:
      QkjaxError: the angles do not fill the grid or are not linear in the coordinates.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.rotary.rotation import axial_angles
      >>> kernel = np.random.default_rng(0).standard_normal((1, 12, 3, 4))  # Wq = Wk: the head groups what is near
      >>> angles = axial_angles(np.arange(3), np.arange(4), np.array([0.5]))
      >>> maps = cosine_by_offset(kernel, kernel, angles, (3, 4))
      >>> maps.shape, maps[0, 0, 2, 3].round(3).item()
      ((1, 3, 5, 7), 1.0)
    """
    all_angles = offset_angles(angles, grid)
    query, key = (scaled_heads(x) for x in (query, key))  # the cosine does not depend on the scale
    even, odd = (np.asarray(x, np.float64)[..., None, :] for x in traces(query, key, pairs))
    shared = all_angles.reshape((1,) * (4 - all_angles.ndim) + all_angles.shape)
    trace = (np.cos(shared) * even + np.sin(shared) * odd).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = trace / np.asarray(nuclear_norms(query, key, all_angles, pairs), np.float64)
    return value.reshape(*value.shape[:2], *offsets(grid).shape[:-1])


def by_distance(
    values: Float[np.ndarray, "layers heads *offset_grid"], counts: Int[np.ndarray, "*offset_grid"]
) -> ByDistance:
    """Averages maps of offsets over all pairs of positions at the same distance (rounded to whole patches).

    Args:
      values: maps of offsets, from `cosine_by_offset`.
      counts: number of pairs of positions with each offset, from `pair_counts`.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.rotary.rotation import offsets, pair_counts
      >>> length = np.linalg.norm(offsets((3, 3)), axis=-1)
      >>> by_distance(length[None, None], pair_counts((3, 3))).value.round(2).tolist()
      [[[0.0, 1.17, 2.13, 2.83]]]
    """
    grid = tuple((n + 1) // 2 for n in counts.shape)
    distance = np.rint(np.linalg.norm(offsets(grid), axis=-1)).astype(int).reshape(-1)
    weights = np.zeros((distance.max() + 1, distance.size))
    weights[distance, np.arange(distance.size)] = counts.reshape(-1)
    present = np.flatnonzero(weights.any(1))
    weights = weights[present]
    total = weights.sum(1)
    value = values.reshape(*values.shape[:2], -1) @ (weights / total[:, None]).T
    return ByDistance(present, total.astype(int), value)
