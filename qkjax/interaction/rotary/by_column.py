"""Rotations with one angle per column, such as that of V-JEPA 2, which are not orthogonal.

A rotation turns both columns of a plane by one angle. V-JEPA 2's published code pairs neighbouring columns, but repeats
its angles after half of the columns, so that the two columns of a plane have different angles. With T, the turn of all
planes by a right angle, and with the angles theta_c(p) of the columns,

    R(p) = diag(cos theta(p)) + T diag(sin theta(p))

is then not orthogonal, and R(p_i) R(p_j)^T depends on both places, and not only on their offset. M(delta) and all that
follows from it do not exist. The mean over pairs of independent places does, since R(p) is linear:

    Mbar = E Wq R(p_i) R(p_j)^T Wk^T = (Wq Rbar) (Wk Rbar)^T,   Rbar = E R(p)

and so does the share of the interaction that depends on the places: with A = E R(p)^T Wq^T Wq R(p), and B likewise for
Wk, E ||M(p_i, p_j)||_F^2 = tr(A B). The functions accept numpy arrays and compute in float64.
"""

import numpy as np
from jaxtyping import Float

from qkjax.interaction.rotary.rotation import Pairs, by_column, by_plane

ColumnAngles = Float[np.ndarray, "places head_dim"]
Kernel = Float[np.ndarray, "layers embed heads head_dim"]


def vjepa2_angles(head_dim: int, grid: tuple[int, int, int], temperature: float = 10000.0) -> ColumnAngles:
    """The angles of V-JEPA 2's columns at all places of a video, frame by frame and row by row.

    A third of the columns rotates with the frame, a third with the row, and a third with the column of a patch; up to
    five columns that remain are not rotated. Planes are "interleaved" pairs.

    Args:
      head_dim: d.
      grid: number of places in time (frames divided by the frames of a tubelet), rows and columns.
      temperature: base of the frequencies.

    Example:
      >>> vjepa2_angles(14, (1, 1, 3))[2].round(2).tolist()  # column 2 of the patches
      [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.02, 2.0, 0.02, 0.0, 0.0]
    """
    count = head_dim // 3 // 2
    frequencies = np.tile(temperature ** -(np.arange(count) / max(count, 1)), 2)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3, 1)
    angles = (places * frequencies).reshape(len(places), 6 * count)
    return np.pad(angles, ((0, 0), (0, head_dim - 6 * count)))


def turned(
    x: Float[np.ndarray, "*batch head_dim"], pairs: Pairs = "interleaved"
) -> Float[np.ndarray, "*batch head_dim"]:
    """Computes x T: turns each plane by a right angle, from its first column to its second."""
    planes = by_plane(x, pairs)
    return by_column(np.stack([-planes[..., 1, :], planes[..., 0, :]], axis=-2), pairs)


def rotate_columns(
    x: Float[np.ndarray, "*batch head_dim"], angles: Float[np.ndarray, "*places head_dim"], pairs: Pairs = "interleaved"
) -> Float[np.ndarray, "*result head_dim"]:
    """Computes x R(p) in float64, for angles that broadcast with `x`.

    Example:
      >>> import numpy as np
      >>> rotate_columns(np.array([1.0, 0.0]), np.array([0.0, np.pi / 2])).tolist()  # not a rotation: it is longer
      [1.0, 1.0]
    """
    x = np.asarray(x, np.float64)
    return x * np.cos(angles) + turned(x, pairs) * np.sin(angles)


def mean_kernels_by_column(
    query: Kernel, key: Kernel, angles: ColumnAngles, pairs: Pairs = "interleaved"
) -> tuple[Kernel, Kernel]:
    """Kernels Wq Rbar and Wk Rbar, whose interaction is the mean over all pairs of places.

    Args:
      query, key: kernels before the rotation.
      angles: angles of the columns at all places.
      pairs: see `qkjax.interaction.rotary.rotation.Pairs`.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 14))
      >>> qkjax.decompose(*mean_kernels_by_column(query, key, vjepa2_angles(14, (2, 3, 3))))
      Modes(1 layers x 3 heads x 12 modes, embed 12, frame plain)
    """
    cosine, sine = np.cos(angles).mean(0), np.sin(angles).mean(0)
    first, second = (x * cosine + turned(x, pairs) * sine for x in (np.asarray(y, np.float64) for y in (query, key)))
    return first, second


def place_share_by_column(
    query: Kernel, key: Kernel, angles: ColumnAngles, pairs: Pairs = "interleaved"
) -> Float[np.ndarray, "layers heads"]:
    """The share of the interaction that depends on the places: 1 - ||Mbar||_F^2 / E ||M(p_i, p_j)||_F^2.

    Args:
      query, key: kernels before the rotation.
      angles: angles of the columns at all places.
      pairs: see `qkjax.interaction.rotary.rotation.Pairs`.

    Example:
      >>> import numpy as np
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 1, 14))
      >>> place_share_by_column(query, key, vjepa2_angles(14, (1, 1, 1))).round(9).tolist()  # a single place
      [[0.0]]
    """
    mean = [_gram(x) for x in mean_kernels_by_column(query, key, angles, pairs)]
    every = [_mean_gram(np.asarray(x, np.float64), angles, pairs) for x in (query, key)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (mean[0] * mean[1]).sum((-1, -2)) / (every[0] * every[1]).sum((-1, -2))


def _gram(kernel: Kernel, other: Kernel | None = None) -> Float[np.ndarray, "layers heads head_dim head_dim"]:
    first, second = (np.moveaxis(x, 1, 2) for x in (kernel, kernel if other is None else other))
    return np.swapaxes(first, -1, -2) @ second


def _mean_gram(
    kernel: Kernel, angles: ColumnAngles, pairs: Pairs
) -> Float[np.ndarray, "layers heads head_dim head_dim"]:
    """E R(p)^T W^T W R(p), from the second moments of cosines and sines."""
    cosine, sine, other = np.cos(angles), np.sin(angles), turned(kernel, pairs)
    both = cosine.T @ cosine, cosine.T @ sine, sine.T @ sine
    mixed = both[1] * _gram(kernel, other)
    return (both[0] * _gram(kernel) + mixed + np.swapaxes(mixed, -1, -2) + both[2] * _gram(other)) / len(angles)
