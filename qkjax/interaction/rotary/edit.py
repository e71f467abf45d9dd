"""Edits of the modes of Mbar, realised in kernels that keep the rotation.

An edit (`qkjax.interaction.edit`) replaces Mbar = sum_n s_n u_n v_n^T by sum_n s_n' u_n v_n'^T. Kernels of this
interaction that change no more than the edited modes are

    Wq' = (I + sum_n (s_n' / s_n - 1) u_n u_n^T) Wq,   Wk' = (I + sum_n (v_n' - v_n) v_n^T) Wk

The edit acts on the content of the tokens in the same way at every offset, M'(delta) = P M(delta) Q^T with the two
brackets P and Q, and Wq' diag(c) Wk'^T is the edited Mbar exactly. No mode includes planes with c = 0. Their columns
stay as they are, and their part of M(delta) is out of reach.

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
from qkjax.interaction.modes import Modes, require_plain
from qkjax.interaction.rotary.mean import Kernel, coherence
from qkjax.interaction.rotary.place import covariances, for_heads, inner_products, moments, scaled_heads
from qkjax.interaction.rotary.rotation import Angles, Pairs, by_column, by_plane

KINDS = ("drop", "flip", "rotate", "equalize")
"""The edits that kernels with a rotation can realise. Symmetric and antisymmetric parts have up to twice the rank of
Mbar, and no plane is left for the additional modes."""


class EditedKernels(NamedTuple):
    """Kernels of all layers after an edit of the modes of Mbar.

    Attributes:
      query_kernel, key_kernel: Wq' and Wk', before the rotation. Heads without an edited mode are unchanged, bit
        for bit.
      mean_change: share of E ||M'(delta) - M(delta)||_F^2 that is the change of Mbar. The rest of the change depends on
        position. NaN for heads that do not change.
    """

    query_kernel: Float[Array, "layers embed heads head_dim"]
    key_kernel: Float[Array, "layers embed heads head_dim"]
    mean_change: Float[Array, "layers heads"]


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
    positional = jnp.asarray(np.asarray(coherence(np.asarray(angles))) == 0, jnp.float32)
    both = positional[..., :, None] * positional[..., None, :]
    both = both.reshape((1,) * (products.ndim - both.ndim) + both.shape)
    return (products * both).sum((0, -1, -2)) / products.sum((0, -1, -2))


@partial(jax.jit, static_argnames="kind")
def _edit(query, key, modes: Modes, weights, reachable, kind: str):
    def head(query, key, u, s, v, weight):
        new_query, new_key = EDITS[kind](u, s, v, weight)
        change = (new_query - u * s[None]) / jnp.where(s > 0, s, 1)[None]
        dot = partial(jnp.matmul, precision="highest")
        return dot(jnp.where(s > 0, change, 0), dot(u.T, query)), dot(new_key - v, dot(v.T, key))

    changes = jax.vmap(jax.vmap(head, in_axes=(1, 1, 0, 0, 0, 0), out_axes=1))(query, key, *modes, weights)
    edited = weights.any(-1)[:, None, :, None]
    changes = (jnp.where(edited, x, 0) * reachable for x in changes)
    return tuple(jnp.where(edited, x + change, x) for x, change in zip((query, key), changes, strict=True))


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
    changes, so does the key bias term of the logits.

    Args:
      query, key: kernels before the rotation.
      angles: angles of all positions over which Mbar is the mean.
      modes: modes of Mbar, in the plain frame.
      kind: one of `KINDS`.
      weights: weight of the edit for each mode, from 0 (unchanged) to 1 (fully edited).

    Raises:
      QkjaxError: the modes are not in the plain frame, or kernels with a rotation cannot realise the edit.

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
    if kind not in KINDS:
        raise QkjaxError(
            f"the edit {kind!r} cannot be realised in kernels with rotary positions: expected one of {', '.join(KINDS)}"
        )
    old = [jnp.asarray(x, jnp.float32) for x in (query, key)]
    reachable = (np.asarray(coherence(np.asarray(angles))) > 0).astype(np.float32)
    columns = by_column(np.stack([reachable, reachable], axis=-2), pairs)
    columns = columns[:, None] if columns.ndim == 3 else columns[None, None, None]
    new = _edit(*old, Modes(*modes), jnp.asarray(weights, jnp.float32), columns, kind)
    return EditedKernels(*new, _mean_change(*old, *new, angles, pairs))


def _mean_change(query, key, new_query, new_key, angles, pairs) -> Float[Array, "layers heads"]:
    """M' - M = (Wq' - Wq) R Wk'^T + Wq R (Wk' - Wk)^T, so that no large numbers cancel."""
    queries, keys = (by_plane(jnp.stack(x), pairs) for x in ((new_query - query, query), (new_key, new_key - key)))
    products = inner_products(queries, keys)
    total = (for_heads(moments(angles)) * products).sum((0, -1, -2))
    moving = (for_heads(covariances(angles)) * products).sum((0, -1, -2))
    return jnp.where(total > 0, 1 - moving / jnp.where(total > 0, total, 1), jnp.nan)
