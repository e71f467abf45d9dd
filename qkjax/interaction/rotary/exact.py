"""The logits of rotated queries and keys as a sum over the modes of Mbar, in head space.

Let q = y_i Wq R(p_i) and k = y_j Wk R(p_j) be a rotated query and key (with their biases, if any), Rbar the mean of
R(p), and Wq Rbar = Qq Rq, Wk Rbar = Qk Rk (thin QR). The modes of Mbar are u = Qq A, v = Qk B with Rq Rk^T = A S B^T.
With the maps F = Rq^-1 A and G = Rk^-1 B, of shape d x d,

    q k^T = sum_n s_n (q F_n) (k G_n)            because F S G^T = Rq^-1 (Rq Rk^T) Rk^-T = I
    E_p [y Wq R(p) F_n] = y Wq Rbar F_n = y u_n

So the terms of all modes add up to the logit exactly, and the mean of each term over all pairs of positions is the
mode's term in Mbar, s_n (y_i u_n) (y_j v_n). No other choice of F and G has both properties. Tokens that are not
rotated have R = I.

The maps are computed as F = Rk^T B / s and G = Rq^T A / s, in float64 and without any inverse of a kernel. No mode
includes planes with c = 0. These planes are in the remainder q (I - F S G^T) k^T, as are modes that are so weak that
their terms would be far larger than the logit and would cancel.
"""

from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.interaction.modes import Modes, require_plain
from qkjax.interaction.rotary.mean import Kernel, mean_rotation
from qkjax.interaction.rotary.rotation import Angles, Pairs, by_plane, plane_columns
from qkjax.interaction.svd.lapack import one_blas_thread

AMPLIFICATION = 1e4
"""Largest s_n |F_n| |G_n| of a mode, the largest possible ratio of its term to |q| |k|, after each plane of Wq and Wk
is scaled to equal norms (which does not change M). Rounding errors of float32 queries and keys are amplified by up to
this factor."""


class HeadMaps(NamedTuple):
    """Maps from rotated queries and keys to the modes of Mbar.

    Attributes:
      query, key: F and G. `rotated_query @ query` is the projection of a query onto the query direction of each mode,
        and `rotated_key @ key` that of a key onto the key directions. Columns of modes in the remainder are 0.
      s: strengths of the modes; 0 for modes in the remainder.
      rest: the remainder I - F diag(s) G^T. The remainder is 0 up to rounding if all planes have c > 0 and the kernels
        have full column rank.
      in_rest: number of modes of each head that are in the remainder.
    """

    query: Float[np.ndarray, "layers heads head_dim rank"]
    key: Float[np.ndarray, "layers heads head_dim rank"]
    s: Float[np.ndarray, "layers heads rank"]
    rest: Float[np.ndarray, "layers heads head_dim head_dim"]
    in_rest: Int[np.ndarray, "layers heads"]


def _mean_of_rotated(kernel: np.ndarray, mean: np.ndarray) -> Float[np.ndarray, "embed columns"]:
    """W Rbar of one head, for columns in the order of `by_plane`; `mean` is complex."""
    first, second = np.split(kernel, 2, axis=-1)
    product = (first + 1j * second) * mean
    return np.concatenate([product.real, product.imag], axis=-1)


def _balance(query: np.ndarray, key: np.ndarray) -> Float[np.ndarray, "columns"]:
    """Factors t, one per plane, for which the planes of Wq diag(t) and of Wk diag(t)^-1 have equal norms."""
    queries, keys = (np.linalg.norm(x.reshape(len(x), 2, -1), axis=(0, 1)) for x in (query, key))
    usable = (queries > 0) & (keys > 0)
    return np.tile(np.sqrt(np.where(usable, keys, 1) / np.where(usable, queries, 1)), 2)


def _maps_of_head(query: np.ndarray, key: np.ndarray, mean: np.ndarray, u: np.ndarray):
    """F and G (stacked) and s of one head, for columns in the order of `by_plane`, with the signs of `u`.

    All are 0 if the kernels are not finite.
    """
    reachable = np.tile(mean != 0, 2)
    maps, strengths = np.zeros((2, query.shape[1], u.shape[-1])), np.zeros(u.shape[-1])
    if not (np.isfinite(query).all() and np.isfinite(key).all()):
        return maps, strengths
    (basis, first), (_, second) = (np.linalg.qr(_mean_of_rotated(x, mean)[:, reachable]) for x in (query, key))
    left, s, right = np.linalg.svd(first @ second.T)
    count = min(len(s), u.shape[-1])
    left, s, right = left[:, :count], s[:count], right[:count].T
    sign = np.where(np.einsum("dn,dn->n", basis @ left, u[:, :count]) < 0, -1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        towards_query, towards_key = second.T @ (right * sign) / s, first.T @ (left * sign) / s
        scale = _balance(query, key)[reachable, None]
        size = s * np.linalg.norm(towards_query / scale, axis=0) * np.linalg.norm(towards_key * scale, axis=0)
    usable = size <= AMPLIFICATION  # False for NaN
    for one, values in zip(maps, (towards_query, towards_key), strict=True):
        one[np.ix_(reachable, np.arange(count))] = np.where(usable, values, 0)
    strengths[:count] = np.where(usable, s, 0)
    return maps, strengths


def head_maps(query: Kernel, key: Kernel, angles: Angles, modes: Modes, pairs: Pairs = "half") -> HeadMaps:
    """Computes the maps from rotated queries and keys to the modes of Mbar.

    Args:
      query, key: kernels before the rotation.
      angles: angles of all positions over which Mbar is the mean. For the modes of M(0) = Wq Wk^T, pass angles of 0.
      modes: modes of Mbar, `decompose(*mean_kernels(query, key, angles, pairs))`. The modes set the signs of the maps.
        If singular values are nearly equal, individual maps may differ from `modes`, as only their span is defined.

    Raises:
      QkjaxError: the modes are not in the plain frame.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.modes import decompose
      >>> from qkjax.interaction.rotary.mean import mean_kernels
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> angles = np.outer(np.arange(5), [1.0, 0.1])
      >>> maps = head_maps(query, key, angles, decompose(*mean_kernels(query, key, angles)))
      >>> bool(np.abs(maps.rest).max() < 1e-6)
      True
    """
    require_plain(modes, "head_maps")
    layers, _, heads, head_dim = query.shape
    real, imaginary = (np.asarray(x, np.float64) for x in mean_rotation(np.asarray(angles)))
    mean = np.broadcast_to(real + 1j * imaginary, (layers, heads, head_dim // 2))
    order = plane_columns(head_dim, pairs).reshape(-1)
    query, key, u = (np.asarray(x) for x in (query, key, modes.u))
    maps = np.zeros((2, layers, heads, head_dim, u.shape[-1]))
    s = np.zeros((layers, heads, u.shape[-1]))
    with one_blas_thread():
        for head in product(range(layers), range(heads)):
            kernels = (by_plane(x[head[0], :, head[1]].astype(np.float64), pairs) for x in (query, key))
            both, s[head] = _maps_of_head(*(x.reshape(len(x), -1) for x in kernels), mean[head], u[head])
            maps[:, head[0], head[1], order] = both
    rest = np.eye(head_dim) - np.einsum("lhdn,lhn,lhen->lhde", maps[0], s, maps[1])
    return HeadMaps(*(x.astype(np.float32) for x in (*maps, s, rest)), in_rest=(s == 0).sum(-1))


def project_rotated(
    query: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    key: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    query_map: Float[Array | np.ndarray, "heads head_dim rank"],
    key_map: Float[Array | np.ndarray, "heads head_dim rank"],
) -> tuple[Float[Array, "batch tokens heads rank"], Float[Array, "batch tokens heads rank"]]:
    """Projects the rotated queries and keys of one layer onto the query and key directions of all modes.

    The projections depend on the position of a token; their mean over all positions is y u_n and y v_n.
    """
    project = [jnp.einsum("bnhd,hdr->bnhr", x, m, precision="highest") for x, m in ((query, query_map), (key, key_map))]
    return project[0], project[1]


def rest_logits(
    query: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    key: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    rest: Float[Array | np.ndarray, "heads head_dim head_dim"],
) -> Float[Array, "batch heads tokens tokens"]:
    """The part of one layer's logits that no mode includes: q (I - F S G^T) k^T / sqrt(d)."""
    through = jnp.einsum("bnhd,hde->bnhe", query, rest, precision="highest")
    logits = jnp.einsum("bihe,bjhe->bhij", through, key, precision="highest")
    return logits / np.sqrt(query.shape[-1]).astype(np.float32)


def logits_from_rotated(
    query: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    key: Float[Array | np.ndarray, "batch tokens heads head_dim"],
    query_map: Float[Array | np.ndarray, "heads head_dim rank"],
    key_map: Float[Array | np.ndarray, "heads head_dim rank"],
    s: Float[Array | np.ndarray, "heads rank"],
    rest: Float[Array | np.ndarray, "heads head_dim head_dim"],
) -> Float[Array, "batch heads tokens tokens"]:
    """Computes the attention logits of one layer as the sum over all modes and the remainder.

    The result equals the logits of the model, up to rounding, for all pairs of tokens: patches, and special tokens that
    are not rotated.
    """
    queries, keys = project_rotated(query, key, query_map, key_map)
    logits = jnp.einsum("bihr,hr,bjhr->bhij", queries, s, keys, precision="highest")
    return logits / np.sqrt(query.shape[-1]).astype(np.float32) + rest_logits(query, key, rest)
