"""Edits of the modes of Mbar, realised in kernels that keep the rotation.

An edit (`qkjax.interaction.edit`) replaces Mbar = sum_n s_n u_n v_n^T by sum_n s_n' u_n v_n'^T. Kernels of this
interaction that change no more than the edited modes are

    Wq' = (I + sum_n (s_n' / s_n - 1) u_n u_n^T) Wq,   Wk' = (I + sum_n (v_n' - v_n) v_n^T) Wk

The edit acts on the content of the tokens in the same way at every offset, M'(delta) = P M(delta) Q^T with the two
brackets P and Q, and Wq' diag(c) Wk'^T is the edited Mbar exactly. No mode includes planes with c = 0. The columns of
these planes stay as they are, and the part of M(delta) in these planes is out of reach.

The symmetric and antisymmetric parts of Mbar have up to twice its rank. The kernels retain the strongest modes of the
part, and `_part_of_mean` describes how near M'(delta) is to M(delta).

An edit of M(delta) at one offset alone, or of a mode's exact term in the logits (`exact`), cannot be realised in
kernels: it would need a matrix between Wq and Wk that does not commute with the rotations.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.edit import EDITS
from qkjax.interaction.modes import Modes, decompose_in_program, require_plain
from qkjax.interaction.rotary.mean import Kernel, coherence
from qkjax.interaction.rotary.place import covariances, for_heads, inner_products, moments, scaled_heads
from qkjax.interaction.rotary.rotation import Angles, Pairs, by_plane, on_columns
from qkjax.interaction.svd.jacobi import jacobi_svd
from qkjax.interaction.svd.lapack import by_lapack

PARTS = ("symmetric", "antisymmetric")
"""Edits that replace Mbar by a part of up to twice its rank; kernels retain its strongest modes."""
dot = partial(jnp.matmul, precision="highest")


class EditedKernels(NamedTuple):
    """Kernels of all layers after an edit of the modes of Mbar.

    Attributes:
      query_kernel, key_kernel: Wq' and Wk', before the rotation. Heads without an edited mode are unchanged, bit for
        bit.
      retained: share of the squared norm of the edited Mbar that the kernels retain; 1 except for symmetric and
        antisymmetric parts.
      mean_change: share of E ||M'(delta) - M(delta)||_F^2 that is the change of Mbar. The rest of M'(delta) - M(delta)
        depends on position. NaN for heads that do not change.
    """

    query_kernel: Float[Array, "layers embed heads head_dim"]
    key_kernel: Float[Array, "layers embed heads head_dim"]
    retained: Float[Array, "layers heads"]
    mean_change: Float[Array, "layers heads"]


def _reachable(angles: Angles) -> Float[np.ndarray, "*heads planes"]:
    """1 for planes with c > 0, and 0 for planes that are purely positional."""
    return (np.asarray(coherence(np.asarray(angles))) > 0).astype(np.float32)


def out_of_reach(query: Kernel, key: Kernel, angles: Angles, pairs: Pairs = "half") -> Float[Array, "layers heads"]:
    """The share of E ||M(delta)||_F^2 that no edit of the modes of Mbar can change: that of the planes with c = 0.

    Example:
      >>> import numpy as np
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 1, 4))
      >>> out_of_reach(query, key, np.outer(np.arange(8), [0.1, 0.2])).tolist()
      [[0.0]]
    """
    planes = (by_plane(scaled_heads(x), pairs)[None] for x in (query, key))
    products = inner_products(*planes) * for_heads(moments(angles))
    positional = jnp.asarray(1 - _reachable(angles))
    both = positional[..., :, None] * positional[..., None, :]
    both = both.reshape((1,) * (products.ndim - both.ndim) + both.shape)
    return (products * both).sum((0, -1, -2)) / products.sum((0, -1, -2))


def _edit_modes(query, key, u, s, v, weight, _, kind: str):
    """Kernels P Wq and Q Wk of one head, for edits that change strengths and key directions mode by mode."""
    new_query, new_key = EDITS[kind](u, s, v, weight)
    change = jnp.where(s > 0, (new_query - u * s[None]) / jnp.where(s > 0, s, 1)[None], 0)
    return query + dot(change, dot(u.T, query)), key + dot(new_key - v, dot(v.T, key)), jnp.ones(())


def _part_of_mean(query, key, u, s, v, weight, root, kind: str):
    """Kernels of one head for the symmetric or antisymmetric part of Mbar; they retain one mode per column in reach.

    X and Y with X Y^T = Mbar' are defined up to a rotation Z of their columns, which decides how Mbar' spreads over the
    planes, and hence the part of M'(delta) that depends on position. Z minimises the distance of X Z and Y Z to the
    kernels before the edit (orthogonal Procrustes; Schoenemann 1966).
    """
    factors = EDITS[kind](u, s, v, weight)
    modes = decompose_in_program(*factors)
    width = query.shape[1]
    count = (root > 0).sum()
    values = jnp.pad(modes.s, (0, max(width - len(modes.s), 0)))[:width]
    kept = jnp.where(jnp.arange(width) < count, values, 0)
    x, y = (
        jnp.pad(side, ((0, 0), (0, max(width - side.shape[1], 0))))[:, :width] * jnp.sqrt(kept)[None]
        for side in (modes.u, modes.v)
    )
    near = dot(x.T, query * root[None]) + dot(y.T, key * root[None])
    # Columns out of reach take the modes that are not retained, so that Z does not mix them with the other columns.
    spare = jnp.where(root > 0, -1, count + jnp.cumsum(root == 0) - 1)
    near = near + (jnp.arange(width)[:, None] == spare[None]) * jnp.linalg.norm(near)
    left, _, right = (jnp.linalg.svd if by_lapack() else jacobi_svd)(near)
    inverse = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)
    total = (modes.s**2).sum()
    retained = jnp.where(total > 0, (kept**2).sum() / jnp.where(total > 0, total, 1), 1)
    return *(dot(side, dot(left, right)) * inverse[None] for side in (x, y)), retained


@partial(jax.jit, static_argnames="kind")
def _edit(query, key, modes: Modes, weights, root, kind: str):
    edit = partial(_part_of_mean if kind in PARTS else _edit_modes, kind=kind)
    old = [jnp.moveaxis(x, 2, 1) for x in (query, key)]

    def layer(arguments):
        return jax.vmap(edit)(*arguments)

    # On a CPU, one layer at a time: two concurrent batched LAPACK calls can deadlock XLA on CPUs with few cores.
    over_layers = partial(jax.lax.map, layer) if by_lapack() else jax.vmap(layer)
    *new, retained = over_layers((*old, *modes, weights, root))
    edited = weights.any(-1)
    changed = edited[..., None, None] & (root > 0)[:, :, None]
    new = (jnp.moveaxis(jnp.where(changed, x, y), 1, 2) for x, y in zip(new, old, strict=True))
    return *new, jnp.where(edited, retained, 1)


def edit_kernels(
    query: Kernel,
    key: Kernel,
    angles: Angles,
    modes: Modes,
    kind: str,
    weights: Float[Array | np.ndarray, "layers heads rank"],
    pairs: Pairs = "half",
) -> EditedKernels:
    """Edits the modes of Mbar, and computes kernels with the edited Mbar. Biases stay as they are.

    `drop`, `flip` and `equalize` change query kernels alone, and `rotate` changes key kernels alone. If the key kernel
    changes, so does the key bias term of the logits. `unbias` changes no kernel: set the query bias to 0 to remove the
    terms bq R(delta) Wk^T y_j^T and bq R(delta) bk^T.

    Args:
      query, key: kernels before the rotation.
      angles: angles of all positions over which Mbar is the mean.
      modes: modes of Mbar, in the plain frame.
      kind: name of an edit in `EDITS`.
      weights: weight of the edit for each mode, from 0 (unchanged) to 1 (fully edited). `symmetric` and `antisymmetric`
        edit each head that has a mode with a weight above 0.

    Raises:
      QkjaxError: the modes are not in the plain frame, or the edit is unknown.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.modes import decompose
      >>> from qkjax.interaction.rotary.mean import mean_kernels
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 1, 4)).astype(np.float32)
      >>> angles = np.outer(np.arange(8), [0.1, 0.2])
      >>> modes = decompose(*mean_kernels(query, key, angles))
      >>> edited = edit_kernels(query, key, angles, modes, "drop", np.array([[[1, 0, 0, 0]]], np.float32))
      >>> after = decompose(*mean_kernels(edited.query_kernel, edited.key_kernel, angles))
      >>> bool(np.allclose(after.s[..., :3], modes.s[..., 1:], rtol=1e-5))
      True
    """
    require_plain(modes, "edit_kernels")
    if kind not in EDITS:
        raise QkjaxError(f"unknown edit {kind!r}: expected one of {', '.join(EDITS)}")
    old = [jnp.asarray(x, jnp.float32) for x in (query, key)]
    c = np.asarray(coherence(np.asarray(angles)))
    root = on_columns(np.sqrt(c), pairs).astype(np.float32)
    layers, _, heads, head_dim = query.shape
    root = jnp.broadcast_to(root, (layers, heads, head_dim))
    *new, retained = _edit(*old, Modes(*modes), jnp.asarray(weights, jnp.float32), root, kind)
    return EditedKernels(*new, retained, _mean_change(*old, *new, angles, pairs))


def _mean_change(query, key, new_query, new_key, angles, pairs) -> Float[Array, "layers heads"]:
    """M' - M = (Wq' - Wq) R Wk'^T + Wq R (Wk' - Wk)^T, so that no large numbers cancel."""
    queries, keys = (by_plane(jnp.stack(x), pairs) for x in ((new_query - query, query), (new_key, new_key - key)))
    products = inner_products(queries, keys)
    total = (for_heads(moments(angles)) * products).sum((0, -1, -2))
    moving = (for_heads(covariances(angles)) * products).sum((0, -1, -2))
    return jnp.where(total > 0, 1 - moving / jnp.where(total > 0, total, 1), jnp.nan)
