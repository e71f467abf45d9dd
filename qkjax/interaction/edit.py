"""Changing what a head attends to: new query and key kernels for an edited interaction.

(The paper has no ablations; this is an extension of ours.) With M = Wq Wk^T = sum_n s_n u_n v_n^T of a
head, an edit gives factors A, B of another interaction M' = A B^T, mode by mode as a weight from 0
(leave) to 1 (all of it) says. A weight w between them is a share of the mode's squared strength: `drop`
leaves sqrt(1 - w) s_n, and the others go sqrt(w) of the way, so that the change has w of its squared norm:

    drop           s_n -> 0
    flip           s_n -> -s_n                   asks for the opposite
    rotate         v_n -> u_n                    every mode attends to similar tokens, as strongly
    equalize       s_n -> their root mean square
    symmetric      M -> (M + M^T) / 2            of the whole head; rank up to twice as high
    antisymmetric  M -> (M - M^T) / 2            the same
    unbias         w -> 0                        of the whole head; M stays

`factorise` makes kernels of M'. A softmax over keys j sees y_i M' y_j and the bias term w . y_j,
w = Wk bq, and nothing else: what only depends on the query cancels. Letters: D embed, R rank,
d columns of a kernel.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.interaction.modes import Modes, decompose_head, require_plain
from qkjax.interaction.query_key import QueryKey

Vectors = Float[Array, "embed rank"]
Values = Float[Array, "rank"]
Factors = tuple[Float[Array, "embed columns"], Float[Array, "embed columns"]]
dot = partial(jnp.matmul, precision="highest")


class FactorisedHead(NamedTuple):
    """Kernels and biases of one edited head.

    Attributes:
      query_kernel, key_kernel: (D, d), with Wq Wk^T = M'.
      query_bias: (d,), with Wk bq = w; the key's bias is 0, since it cancels.
      kept: share of ||M'||_F^2 that d columns hold; 1 where M' and w fit.
    """

    query_kernel: Float[Array, "embed head_dim"]
    key_kernel: Float[Array, "embed head_dim"]
    query_bias: Float[Array, "head_dim"]
    kept: Float[Array, ""]


def drop(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """Without the modes."""
    return u * (s * jnp.sqrt(1 - weight))[None], v


def flip(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """With the modes' opposites."""
    return u * (s * (1 - 2 * jnp.sqrt(weight)))[None], v


def rotate(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """With the modes' key directions turned onto their query directions."""
    return u * s[None], v + (u - v) * jnp.sqrt(weight)[None]


def equalize(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """With one strength for all the modes, that keeps the sum of their squares (where they are taken whole)."""
    level = jnp.sqrt((weight * s**2).sum() / jnp.maximum(weight.sum(), 1e-9))
    return u * (s + jnp.sqrt(weight) * (level - s))[None], v


def _part(u: Vectors, s: Values, v: Vectors, sign: int) -> Factors:
    return jnp.concatenate([u * s[None], sign * v * s[None]], axis=1) / 2, jnp.concatenate([v, u], axis=1)


def symmetric(u: Vectors, s: Values, v: Vectors, _: Values) -> Factors:
    """(M + M^T) / 2."""
    return _part(u, s, v, 1)


def antisymmetric(u: Vectors, s: Values, v: Vectors, _: Values) -> Factors:
    """(M - M^T) / 2."""
    return _part(u, s, v, -1)


def unbias(u: Vectors, s: Values, v: Vectors, _: Values) -> Factors:
    """As they are: only the term w . y_j goes."""
    return u * s[None], v


EDITS: dict[str, Callable[[Vectors, Values, Vectors, Values], Factors]] = {
    "drop": drop,
    "flip": flip,
    "rotate": rotate,
    "equalize": equalize,
    "symmetric": symmetric,
    "antisymmetric": antisymmetric,
    "unbias": unbias,
}


def factorise(factors: Factors, key_direction: Float[Array, "embed"], columns: int) -> FactorisedHead:
    """Kernels of one head with `columns` columns for M' = A B^T and w.

    The key kernel spans w and as much as fits of the row space of M': with w' = w / |w| it takes w' and the
    strongest right singular vectors of M' (I - w' w'^T). Where w lies in the row space, as it does until key
    directions are turned or M is symmetrised, nothing is left out.
    """
    a, b = factors
    held = min(columns, len(key_direction))  # more columns than the embedding has are 0
    length = jnp.linalg.norm(key_direction)
    along = key_direction / jnp.maximum(length, jnp.finfo(b.dtype).tiny)
    rest = b - along[:, None] * dot(along, b)[None]
    narrow = max(columns - a.shape[1], 0)  # where there are fewer modes than columns
    rows = decompose_head(*(jnp.pad(x, ((0, 0), (0, narrow))) for x in (a, rest))).v
    first = jnp.concatenate([along[:, None], rows[:, : held - 1]], axis=1)
    # Where what is left of M' is of lower rank, its last vectors are any, and may have a part along w.
    basis, _ = jnp.linalg.qr(jnp.where(length > 0, first, rows[:, :held]))
    basis = jnp.pad(basis, ((0, 0), (0, columns - held)))
    query = dot(a, dot(b.T, basis))
    total = (dot(a.T, a) * dot(b.T, b)).sum()
    kept = jnp.where(total > 0, (query**2).sum() / total, 1.0)
    # Both kernels of about one size, as training leaves them.
    balance = jnp.sqrt(jnp.linalg.norm(query) / np.sqrt(columns))
    balance = jnp.where(balance > 0, balance, 1.0)
    return FactorisedHead(query / balance, basis * balance, dot(basis.T, key_direction) / balance, kept)


class Edited(NamedTuple):
    """What stands in for the query and key parameters of all layers: as in `QueryKey`, the key's bias being 0 in
    edited heads; and the share of ||M'||_F^2 that each head's kernels hold."""

    query_kernel: Float[Array, "layers embed heads head_dim"]
    key_kernel: Float[Array, "layers embed heads head_dim"]
    query_bias: Float[Array, "layers heads head_dim"]
    key_bias: Float[Array, "layers heads head_dim"]
    kept: Float[Array, "layers heads"]


@partial(jax.jit, static_argnames=("kind", "columns", "key_bias"))
def edit(
    parameters: QueryKey,
    modes: Modes,
    kind: str,
    weights: Float[Array, "layers heads rank"],
    columns: int | None = None,
    key_bias: bool = True,
    heads: Bool[Array | np.ndarray, "layers heads"] | None = None,
) -> Edited:
    """Edits the modes of all heads.

    Args:
      parameters: of the model.
      modes: of the same model, in the plain frame.
      kind: one of `EDITS`.
      weights: how much of each mode is edited, 0 to 1.
      columns: of the new kernels, if not head_dim; then the kernels of all heads are computed again.
      key_bias: keep the term w . y_j, which makes a key attractive to all queries. False removes it from the edited
        heads.
      heads: which heads are edited, if not those that `weights` touches; all others keep their bits.

    Raises:
      QkjaxError: modes in another frame than the plain one.
    """
    require_plain(modes, "edit")
    query, key, query_bias, own_key_bias = (jnp.asarray(x, jnp.float32) for x in parameters[:4])
    direction = jnp.einsum("ldhk,lhk->lhd", key, query_bias, precision="highest")
    biased = 1.0 if key_bias and kind != "unbias" else 0.0
    touched = jnp.asarray(weights).any(axis=-1) if heads is None else jnp.asarray(heads)

    def head(u, s, v, weight, direction, touched):
        made = EDITS[kind](u, s, v, weight)
        more = made[0].shape[1] - u.shape[1]
        own = (jnp.pad(x, ((0, 0), (0, more))) for x in (u * s[None], v))
        factors = tuple(jnp.where(touched, new, old) for new, old in zip(made, own, strict=True))
        return factorise(factors, direction * jnp.where(touched, biased, 1.0), columns or query.shape[-1])

    def layer(arguments):
        return jax.vmap(head)(*arguments)

    # A layer after the other: two batched LAPACK calls at a time can deadlock XLA on CPUs with few cores.
    made = jax.lax.map(layer, (*modes, jnp.asarray(weights, jnp.float32), direction, touched))
    kernels = [jnp.moveaxis(x, 1, 2) for x in (made.query_kernel, made.key_kernel)]
    new = Edited(*kernels, made.query_bias, jnp.zeros_like(made.query_bias), made.kept)
    if columns:
        return new
    old = Edited(query, key, query_bias, own_key_bias, jnp.ones_like(made.kept))
    where = [touched[:, None, :, None], touched[:, None, :, None], touched[..., None], touched[..., None], touched]
    return Edited(*(jnp.where(w, n, o) for w, n, o in zip(where, new, old, strict=True)))
