"""Rotations of queries and keys: which columns form a plane, and by what angle a position rotates each plane."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from qkjax.errors import QkjaxError

Pairs = Literal["half", "interleaved"] | np.ndarray
"""The two columns of each plane: "half" pairs column a with column a + d/2 (DINOv3, Llama); "interleaved" pairs column
2a with column 2a + 1 (RoFormer, EVA-02); an array of shape (2, planes) lists the columns of all planes."""
Angles = Float[Array | np.ndarray, "*heads places planes"]
"""Angles in radians, by position and plane. If the heads rotate by different angles (learned frequencies), the leading
axes are (layers, heads); if only the layers do (windows), they are (layers, 1)."""


class Rotation(NamedTuple):
    """The rotation of queries and keys at all positions in a grid.

    Attributes:
      angles: angles of the positions, in row-major order.
      pairs: the columns of each plane.
      grid: number of positions along each axis, such as (rows, columns).
      window: number of positions along each axis of the windows within which queries attend to keys; None if they
        attend to the whole grid. Windows divide the grid, and the positions in all windows have the same angles. For
        the angles of several layers, windows apply to the layers that have them.
    """

    angles: Angles
    pairs: Pairs
    grid: tuple[int, ...]
    window: tuple[int, ...] | None = None


LINEAR = 1e-3
"""Largest deviation in radians of the angles of a grid from a linear function of row and column. Angles that a model
computes in float32 deviate by less than 1e-4."""


def plane_columns(head_dim: int, pairs: Pairs = "half") -> Int[np.ndarray, "2 planes"]:
    """The columns of a head that form each plane: a plane rotates from the first of its columns to the second.

    Columns that a model does not rotate also belong to planes; the angles of these planes are 0.

    Raises:
      QkjaxError: the number of columns is odd, or `pairs` does not name every column once.

    Example:
      >>> plane_columns(6, "half").tolist(), plane_columns(6, "interleaved").tolist()
      ([[0, 1, 2], [3, 4, 5]], [[0, 2, 4], [1, 3, 5]])
    """
    columns = np.arange(head_dim)
    if isinstance(pairs, str):
        if head_dim % 2:
            raise QkjaxError(f"head_dim is {head_dim}: expected an even number, because planes are pairs of columns")
        return columns.reshape(2, -1) if pairs == "half" else columns.reshape(-1, 2).T
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or len(pairs) != 2 or not np.array_equal(np.sort(pairs, axis=None), columns):
        raise QkjaxError(
            f"pairs has shape {pairs.shape}: expected (2, {head_dim // 2}), with each of the {head_dim} columns once"
        )
    return pairs


def by_plane(
    x: Float[Array | np.ndarray, "*batch head_dim"], pairs: Pairs = "half"
) -> Float[Array | np.ndarray, "*batch 2 planes"]:
    """Reorders the columns of queries, keys or kernels to (..., 2, planes)."""
    columns = plane_columns(x.shape[-1], pairs)
    if not isinstance(pairs, str):
        return x[..., columns.reshape(-1)].reshape(*x.shape[:-1], *columns.shape)
    if pairs == "half":
        return x.reshape(*x.shape[:-1], *columns.shape)  # without a copy
    return x.reshape(*x.shape[:-1], *columns.shape[::-1]).swapaxes(-1, -2)


def by_column(
    x: Float[Array | np.ndarray, "*batch 2 planes"], pairs: Pairs = "half"
) -> Float[Array | np.ndarray, "*batch head_dim"]:
    """The inverse of `by_plane`: returns the columns in the order of the head."""
    if isinstance(pairs, str):
        x = x if pairs == "half" else x.swapaxes(-1, -2)
        return x.reshape(*x.shape[:-2], -1)
    columns = plane_columns(2 * x.shape[-1], pairs)
    return x.reshape(*x.shape[:-2], -1)[..., np.argsort(columns, axis=None)]


def on_columns(
    x: Float[Array | np.ndarray, "*batch planes"], pairs: Pairs = "half"
) -> Float[Array | np.ndarray, "*batch head_dim"]:
    """Gives both columns of each plane the value of the plane; returns the columns in the order of the head."""
    module = jnp if isinstance(x, jax.Array) else np
    return by_column(module.stack([x, x], axis=-2), pairs)


def cosine_and_sine(angles: Float[Array | np.ndarray, "..."]):
    """Cosine and sine of angles: in float64 for numpy arrays, and in the precision of the array for JAX arrays."""
    if isinstance(angles, jax.Array):
        return jnp.cos(angles), jnp.sin(angles)
    angles = np.asarray(angles, np.float64)
    return np.cos(angles), np.sin(angles)


def rotate(
    x: Float[Array | np.ndarray, "*batch head_dim"],
    angles: Float[Array | np.ndarray, "*places planes"],
    pairs: Pairs = "half",
) -> Float[Array | np.ndarray, "*result head_dim"]:
    """Computes x R(p): rotates the columns x_a, x_a' of each plane to x_a cos - x_a' sin, x_a' cos + x_a sin.

    Args:
      x: queries, keys or kernels.
      angles: angles whose last axes align with the last axes of `x`; for queries of shape (batch, tokens, heads,
        head_dim), pass `angles[:, None, :]`.
      pairs: see `Pairs`.

    Example:
      >>> import numpy as np
      >>> rotate(np.array([[1.0, 0.0]]), np.array([np.pi / 2])).round(6).tolist()  # from the first column to the second
      [[0.0, 1.0]]
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cosine, sine = (part.astype(dtype) for part in cosine_and_sine(angles))
    planes = by_plane(x.astype(dtype), pairs)
    first, second = planes[..., 0, :], planes[..., 1, :]
    shape = (1,) * (first.ndim - cosine.ndim) + cosine.shape
    cosine, sine = cosine.reshape(shape), sine.reshape(shape)
    stack = jnp.stack if isinstance(first, jax.Array) or isinstance(cosine, jax.Array) else np.stack
    return by_column(stack([first * cosine - second * sine, second * cosine + first * sine], axis=-2), pairs)


def axial_angles(
    rows: Real[np.ndarray, "rows"],
    columns: Real[np.ndarray, "columns"],
    frequencies: Float[np.ndarray, "frequencies"],
) -> Float[np.ndarray, "rows*columns 2*frequencies"]:
    """Angles of an axial rotation: the first planes rotate with the row, the other planes with the column.

    Args:
      rows, columns: coordinates of the rows and columns of the grid, from top to bottom and from left to right.
      frequencies: radians per unit of the coordinates, the same for both axes.

    Example:
      >>> import numpy as np
      >>> centres = (np.arange(14) + 0.5) / 14 * 2 - 1  # DINOv3 with 14 x 14 patches and d = 64
      >>> axial_angles(centres, centres, 2 * np.pi / 100 ** (4 * np.arange(16) / 64)).shape
      (196, 32)
    """
    across, down = (np.multiply.outer(np.asarray(x, np.float64), frequencies) for x in (columns, rows))
    shape = (len(down), len(across), down.shape[1])
    both = [np.broadcast_to(down[:, None], shape), np.broadcast_to(across[None], shape)]
    return np.concatenate(both, axis=-1).reshape(shape[0] * shape[1], -1)


def grid_steps(angles: Angles, grid: tuple[int, ...]) -> Float[np.ndarray, "*heads axes planes"]:
    """The angle of one step along each axis of a grid, for angles that are linear in the coordinates.

    Args:
      angles: angles of all positions in the grid, in row-major order.
      grid: number of positions along each axis, such as (rows, columns).

    Raises:
      QkjaxError: the angles do not fill the grid, or they are not linear in the coordinates.
    """
    angles = np.asarray(angles, np.float64)
    places = angles.shape[-2]
    if places != np.prod(grid):
        raise QkjaxError(f"{places} positions do not fill a grid of {' x '.join(map(str, grid))}: pass their grid")
    coordinates = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(places, -1)
    centred = coordinates - coordinates.mean(0)
    lengths = (centred**2).sum(0)  # the axes of a grid are orthogonal; an axis with one position has length 0
    steps = np.einsum("pg,...pa->...ga", centred / np.where(lengths > 0, lengths, 1), angles)
    error = np.abs(angles - angles.mean(-2, keepdims=True) - np.einsum("pg,...ga->...pa", centred, steps))
    if error.max(initial=0) > LINEAR:
        raise QkjaxError(
            f"the angles deviate by {error.max():.2g} radians from a linear function of the coordinates: expected the "
            f"angles of a regular grid of {' x '.join(map(str, grid))}, in row-major order"
        )
    return steps


def offsets(grid: tuple[int, ...]) -> Int[np.ndarray, "*offset_grid axes"]:
    """The offsets delta = p_i - p_j (position of the query minus position of the key) between the positions in a grid.

    Offset 0 is in the middle. A positive row offset means that the query is below the key.

    Example:
      >>> offsets((2, 3)).shape, offsets((2, 3))[0, 0].tolist()
      ((3, 5, 2), [-1, -2])
    """
    return np.stack(np.meshgrid(*(np.arange(1 - n, n) for n in grid), indexing="ij"), -1)


def pair_counts(grid: tuple[int, ...]) -> Int[np.ndarray, "*offset_grid"]:
    """The number of pairs of positions with each offset."""
    return np.prod(np.asarray(grid) - np.abs(offsets(grid)), axis=-1)
