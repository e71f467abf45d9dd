"""Edits the interaction of a head, and computes new query and key kernels for the edited interaction.

(Edits are not in the paper.) The interaction of a head is M = Wq Wk^T = sum_n s_n u_n v_n^T. An edit replaces M by M' =
A B^T and returns the factors A and B. Each mode has a weight t, from 0 (the mode is unchanged) to 1 (the mode is fully
edited). The edits are:

    drop           s_n -> 0                  removes the mode
    flip           s_n -> -s_n               reverses the sign of the mode's contribution to the attention logits
    rotate         v_n -> u_n                the mode attends to similar tokens, at the same strength
    equalize       s_n -> root mean square of the edited s_n
    symmetric      M -> (M + M^T) / 2        edits whole heads; the rank may double
    antisymmetric  M -> (M - M^T) / 2        edits whole heads; the rank may double
    unbias         w -> 0                    removes the key bias term w . y_j of whole heads; M stays the same

A weight t between 0 and 1 edits a share t of the mode's squared strength. `drop` reduces the strength to sqrt(1 - t)
s_n. `flip`, `rotate` and `equalize` apply sqrt(t) times the full change, so that the squared norm of the change is t
times the squared norm of the full change.

`factorise` computes kernels of M'. The softmax over keys j depends only on y_i M' y_j and on the key bias term w . y_j,
where w = Wk bq. All other terms depend only on the query, so they cancel. Letters: D embed, R rank, d columns of a
kernel.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.interaction.modes import Modes, decompose_in_program, require_plain
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.svd.lapack import by_lapack
from qkjax.interaction.svd.thin_qr import thin_qr

Vectors = Float[Array, "embed rank"]
Values = Float[Array, "rank"]
Factors = tuple[Float[Array, "embed columns"], Float[Array, "embed columns"]]
dot = partial(jnp.matmul, precision="highest")


class FactorisedHead(NamedTuple):
    """Kernels and biases of one edited head.

    Attributes:
      query_kernel, key_kernel: Wq and Wk, of shape (D, d), for which Wq Wk^T = M'.
      query_bias: bq, of shape (d,), for which Wk bq = w. There is no key bias, because the softmax cancels its terms.
      retained: share of ||M'||_F^2 that kernels with d columns retain; 1 if the kernels represent M' and w exactly.
    """

    query_kernel: Float[Array, "embed head_dim"]
    key_kernel: Float[Array, "embed head_dim"]
    query_bias: Float[Array, "head_dim"]
    retained: Float[Array, ""]


def drop(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """Removes the modes."""
    return u * (s * jnp.sqrt(1 - weight))[None], v


def flip(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """Negates the modes."""
    return u * (s * (1 - 2 * jnp.sqrt(weight)))[None], v


def rotate(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """Rotates the key direction of each mode towards its query direction."""
    return u * s[None], v + (u - v) * jnp.sqrt(weight)[None]


def equalize(u: Vectors, s: Values, v: Vectors, weight: Values) -> Factors:
    """Gives all edited modes the same strength.

    If every weight is 0 or 1, the sum of the squared strengths does not change.
    """
    level = jnp.sqrt((weight * s**2).sum() / jnp.maximum(weight.sum(), 1e-9))
    return u * (s + jnp.sqrt(weight) * (level - s))[None], v


def _part(u: Vectors, s: Values, v: Vectors, sign: int) -> Factors:
    """Returns factors of (M + sign M^T) / 2."""
    return jnp.concatenate([u * s[None], sign * v * s[None]], axis=1) / 2, jnp.concatenate([v, u], axis=1)


def symmetric(u: Vectors, s: Values, v: Vectors, _: Values) -> Factors:
    """Replaces M by its symmetric part, (M + M^T) / 2."""
    return _part(u, s, v, 1)


def antisymmetric(u: Vectors, s: Values, v: Vectors, _: Values) -> Factors:
    """Replaces M by its antisymmetric part, (M - M^T) / 2."""
    return _part(u, s, v, -1)


def unbias(u: Vectors, s: Values, v: Vectors, _: Values) -> Factors:
    """Returns factors of the unchanged M; the function `edit` removes the key bias term w . y_j."""
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

KEEP_KEYS = ("drop", "flip", "equalize", "unbias")
"""Edits that change only the strengths of modes: the columns of B are the key directions, which are orthonormal."""
OUTSIDE = 1e-5
"""Largest part of w outside the span of the key directions that is a rounding error; w = Wk bq lies within the span,
unless Wk is rank-deficient."""


def within_modes(factors: Factors, key_direction: Float[Array, "embed"], columns: int) -> FactorisedHead:
    """Computes the kernels of one head if the columns of B are orthonormal and their span contains w: then Wk = B."""
    a, b = (jnp.pad(x, ((0, 0), (0, columns - x.shape[1]))) for x in factors)
    balance = _balance(a)
    return FactorisedHead(a / balance, b * balance, dot(key_direction, b) / balance, jnp.ones((), a.dtype))


def _balance(query: Float[Array, "embed columns"]) -> Float[Array, ""]:
    """The factor that scales both kernels to about the same norm, as in trained models, if Wk is orthonormal."""
    balance = jnp.sqrt(jnp.linalg.norm(query) / np.sqrt(query.shape[1]))
    return jnp.where(balance > 0, balance, 1.0)


def factorise(factors: Factors, key_direction: Float[Array, "embed"], columns: int) -> FactorisedHead:
    """Computes query and key kernels with `columns` columns, for one head's interaction M' = A B^T and key direction w.

    The columns of the key kernel span w and as much of the row space of M' as fits. With w' = w / |w|, the columns span
    w' and the strongest right singular vectors of M' (I - w' w'^T). If w lies in the row space of M', nothing is lost.
    Only edits that rotate key directions or symmetrise M can move w out of the row space of M'.
    """
    a, b = factors
    width = min(columns, len(key_direction))  # columns beyond the dimension of the embedding are 0
    length = jnp.linalg.norm(key_direction)
    along = key_direction / jnp.maximum(length, jnp.finfo(b.dtype).tiny)
    rest = b - along[:, None] * dot(along, b)[None]
    padding = max(columns - a.shape[1], 0)  # the number of columns to add if there are fewer modes than columns
    right = decompose_in_program(*(jnp.pad(x, ((0, 0), (0, padding))) for x in (a, rest))).v
    with_along = jnp.concatenate([along[:, None], right[:, : width - 1]], axis=1)
    # If M' (I - w' w'^T) is rank deficient, its last singular vectors are arbitrary and may have a component along w.
    basis, _ = thin_qr(jnp.where(length > 0, with_along, right[:, :width]))
    basis = jnp.pad(basis, ((0, 0), (0, columns - width)))
    query = dot(a, dot(b.T, basis))
    total = (dot(a.T, a) * dot(b.T, b)).sum()
    retained = jnp.where(total > 0, (query**2).sum() / total, 1.0)
    balance = _balance(query)
    return FactorisedHead(query / balance, basis * balance, dot(basis.T, key_direction) / balance, retained)


class EditedHeads(NamedTuple):
    """The query and key parameters of all layers after an edit.

    Attributes:
      query_kernel, key_kernel, query_bias, key_bias: as in `QueryKey`; the key bias of edited heads is 0.
      retained: share of ||M'||_F^2 that the kernels of each head retain.
    """

    query_kernel: Float[Array, "layers embed heads head_dim"]
    key_kernel: Float[Array, "layers embed heads head_dim"]
    query_bias: Float[Array, "layers heads head_dim"]
    key_bias: Float[Array, "layers heads head_dim"]
    retained: Float[Array, "layers heads"]


@partial(jax.jit, static_argnames=("kind", "columns", "key_bias"))
def edit(
    parameters: QueryKey,
    modes: Modes,
    kind: str,
    weights: Float[Array, "layers heads rank"],
    columns: int | None = None,
    key_bias: bool = True,
    heads: Bool[Array | np.ndarray, "layers heads"] | None = None,
) -> EditedHeads:
    """Edits the modes of all heads.

    Args:
      parameters: query and key parameters of the model.
      modes: modes of the same model, in the plain frame (see `Frame`).
      kind: name of an edit in `EDITS`.
      weights: weight of the edit for each mode, from 0 (unchanged) to 1 (fully edited).
      columns: number of columns of the new kernels. If None, the kernels have head_dim columns, and the parameters of
        unedited heads stay bit-identical. Otherwise, new kernels are computed for all heads.
      key_bias: whether edited heads keep the term w . y_j, which makes a key attractive to all queries.
      heads: the heads to edit; if None, all heads that have a mode with a weight above 0.

    Raises:
      QkjaxError: the modes are not in the plain frame.
    """
    require_plain(modes, "edit")
    query, key, query_bias, own_key_bias = (jnp.asarray(x, jnp.float32) for x in parameters[:4])
    direction = jnp.einsum("ldhk,lhk->lhd", key, query_bias, precision="highest")
    biased = 1.0 if key_bias and kind != "unbias" else 0.0
    edited = jnp.asarray(weights).any(axis=-1) if heads is None else jnp.asarray(heads)

    def head(arguments):
        u, s, v, weight, direction, edited = arguments
        new_factors = EDITS[kind](u, s, v, weight)
        padding = new_factors[0].shape[1] - u.shape[1]
        old_factors = (jnp.pad(x, ((0, 0), (0, padding))) for x in (u * s[None], v))
        factors = tuple(jnp.where(edited, new, old) for new, old in zip(new_factors, old_factors, strict=True))
        arguments = factors, direction * jnp.where(edited, biased, 1.0), columns or query.shape[-1]
        if kind not in KEEP_KEYS:
            return factorise(*arguments)
        outside = jnp.linalg.norm(direction - dot(v, dot(direction, v))) > OUTSIDE * jnp.linalg.norm(direction)
        return jax.lax.cond(outside, lambda: factorise(*arguments), lambda: within_modes(*arguments))

    # On a CPU, one head at a time, so that only one of the two methods is computed. Two concurrent batched LAPACK calls
    # can also deadlock XLA on CPUs with few cores.
    over = (lambda function: partial(jax.lax.map, function)) if by_lapack() else jax.vmap
    result = over(over(head))((*modes, jnp.asarray(weights, jnp.float32), direction, edited))
    kernels = [jnp.moveaxis(x, 1, 2) for x in (result.query_kernel, result.key_kernel)]
    new = EditedHeads(*kernels, result.query_bias, jnp.zeros_like(result.query_bias), result.retained)
    if columns:
        return new
    old = EditedHeads(query, key, query_bias, own_key_bias, jnp.ones_like(result.retained))
    where = [edited[:, None, :, None], edited[:, None, :, None], edited[..., None], edited[..., None], edited]
    return EditedHeads(*(jnp.where(w, n, o) for w, n, o in zip(where, new, old, strict=True)))
