"""Computes the fixed sine-cosine position embedding, and resamples a learned position embedding to another grid."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Grid = tuple[int, int]


def sincos_2d(grid: Grid, width: int) -> Float[np.ndarray, "1 tokens width"]:
    """The fixed sine-cosine embedding of the patches of a grid, row by row.

    The vector of a patch is [sin(x omega), cos(x omega), sin(y omega), cos(y omega)], as in MoCo v3 and big_vision.
    Here x is the column index, y the row index, and omega_k = 10000^(-k / (D/4 - 1)) are the frequencies.
    """
    y, x = (index.reshape(-1, 1) for index in np.mgrid[: grid[0], : grid[1]])
    quarter = width // 4
    omega = 10_000.0 ** -(np.arange(quarter) / max(quarter - 1, 1)).reshape(1, -1)
    table = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    return np.concatenate(table, axis=1, dtype=np.float32)[None]


def _linear_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights of linear interpolation with aligned corners, as in `scipy.ndimage.zoom(order=1)`."""
    position = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old)[None]))


def _bicubic_weights(old: int, new: int, offset: float = 0.0) -> Float[np.ndarray, "new old"]:
    """The weights of cubic convolution with a = -0.75, as in torch without antialiasing.

    Pixel centres are at half integers, and edge pixels are repeated.

    Args:
      old, new: number of pixels of the old and the new grid along one axis.
      offset: number that is added to `new` before the scale is computed.
    """
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    weights = np.zeros((new, old))
    for neighbour in (-1, 0, 1, 2):
        index = np.floor(centre).astype(int) + neighbour
        t = np.abs(centre - index)
        inner = (a + 2) * t**3 - (a + 3) * t**2 + 1  # |t| <= 1
        outer = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a  # 1 < |t| < 2
        np.add.at(weights, (np.arange(new), index.clip(0, old - 1)), np.where(t <= 1, inner, outer))
    return weights


def _antialiased_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights of cubic convolution with a = -0.5, as in torch's bicubic interpolation with antialias=True.

    The kernel is scaled to the pixels of the coarser grid, and the weights are normalised.
    """
    a, scale = -0.5, old / new
    centre = (np.arange(new) + 0.5) * scale
    t = np.abs(np.arange(old)[None] + 0.5 - centre[:, None]) / max(scale, 1)
    inner = (a + 2) * t**3 - (a + 3) * t**2 + 1
    outer = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    weights = np.where(t <= 1, inner, np.where(t < 2, outer, 0))
    return weights / weights.sum(axis=1, keepdims=True)


def _antialiased_linear_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights of linear interpolation, as in torch's bilinear interpolation with antialias=True.

    The triangular kernel is scaled to the pixels of the coarser grid, and the weights are normalised.
    """
    scale = old / new
    centre = (np.arange(new) + 0.5) * scale
    t = np.abs(np.arange(old)[None] + 0.5 - centre[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - t)
    return weights / weights.sum(axis=1, keepdims=True)


def _bilinear_weights(old: int, new: int, offset: float = 0.0) -> Float[np.ndarray, "new old"]:
    """The weights of linear interpolation with half-pixel centres and repeated edges, as in torch without antialiasing.

    If the size of an axis does not change, torch copies the axis, for any offset.
    """
    centre = (np.arange(new) + 0.5) * old / (new + (0 if old == new else offset)) - 0.5
    return np.maximum(0, 1 - np.abs(centre.clip(0, old - 1)[:, None] - np.arange(old)[None]))


def _nearest_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights that select the nearest lower position, with float32 fractions of the side as in Idefics 2."""
    fractions = np.arange(new, dtype=np.float32) * (np.float32(1) / np.float32(new))
    boundaries = np.arange(1 / old, 1, 1 / old).astype(np.float32)[: old - 1]
    return np.eye(old)[np.searchsorted(boundaries, np.minimum(fractions, np.float32(1 - 1e-6)), side="right")]


def _tile_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights that repeat the old positions, as in SAM 3."""
    return np.eye(old)[np.arange(new) % old]


RESAMPLERS = {
    "linear": _linear_weights,
    "bicubic": _bicubic_weights,
    "bicubic_antialias": _antialiased_weights,
    "bicubic_offset": partial(_bicubic_weights, offset=0.1),
    "bilinear": _bilinear_weights,
    "bilinear_antialias": _antialiased_linear_weights,
    "bilinear_crop": _bilinear_weights,
    "bilinear_offset": partial(_bilinear_weights, offset=0.1),
    "nearest": _nearest_weights,
    "tile": _tile_weights,
}


def resample(
    posemb: Float[Array | np.ndarray, "1 tokens width"], old: Grid, new: Grid, method: str
) -> Float[Array | np.ndarray, "1 new_tokens width"]:
    """Resamples the learned position embedding of patches (without a row for the class token) to another grid.

    Args:
      posemb: one vector per patch of the old grid, row by row.
      old, new: (rows, columns) of the old and the new grid; grids need not be square.
      method: a name in `RESAMPLERS`. "linear" is the method that big_vision uses when it loads checkpoints; all other
        methods are torch's.

    Returns:
      The embedding of the patches in the new grid. If the grids are equal, the result is the input itself.
    """
    if old == new:
        return posemb
    target = (max(new), max(new)) if method == "bilinear_crop" else new
    both = (RESAMPLERS[method](*sizes)[:count] for *sizes, count in zip(old, target, new, strict=True))
    rows, columns = (jnp.asarray(weights, posemb.dtype) for weights in both)
    table = posemb.reshape(*old, -1)
    return jnp.einsum("ra,cb,abd->rcd", rows, columns, table, precision="highest").reshape(1, new[0] * new[1], -1)


def relative_index(grid: Grid) -> Int[np.ndarray, "tokens tokens"]:
    """For each query token (row) and key token (column), the index of an entry in the relative position bias table.

    The table has one entry for each offset (query - key) between patches, row by row. Three more entries follow, as in
    BEiT and SimMIM. These entries are for the class token attending to a patch, a patch attending to the class token,
    and the class token attending to itself.
    """
    rows, columns = grid
    y, x = (index.reshape(-1) for index in np.mgrid[:rows, :columns])
    down = y[:, None] - y[None] + rows - 1
    right = x[:, None] - x[None] + columns - 1
    last = (2 * rows - 1) * (2 * columns - 1) + 2
    index = np.full((1 + y.size, 1 + y.size), last)
    index[0, 1:], index[1:, 0] = last - 2, last - 1
    index[1:, 1:] = down * (2 * columns - 1) + right
    return index
