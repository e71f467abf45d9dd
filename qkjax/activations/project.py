"""Query and key maps: the tokens of an image projected on the two directions of every mode.

Letters: L layers, B images, N tokens, P patches, H heads, D embed, R rank (modes of a head).
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.modes import Modes, require_plain

Stream = Literal["norm", "residual"]
"""What is projected: the LayerNorm's output, on which M acts, or the residual stream before it, which
the authors' published code projects."""


class Maps(NamedTuple):
    """Projections of all tokens on all modes: `query[..., h, n]` = y . u_n, `key[..., h, n]` = y . v_n.

    `query[l, b, :, :, h, n]` is a map over the patch grid, rows downwards. Class token, registers and
    the like are apart, in `query_special` and `key_special`, in the model's order.
    """

    query: Float[Array, "layers batch rows columns heads rank"]
    key: Float[Array, "layers batch rows columns heads rank"]
    query_special: Float[Array, "layers batch special heads rank"]
    key_special: Float[Array, "layers batch special heads rank"]


def project(
    tokens: Float[Array | np.ndarray, "batch tokens embed"],
    u: Float[Array | np.ndarray, "heads embed rank"],
    v: Float[Array | np.ndarray, "heads embed rank"],
) -> Float[Array, "batch tokens 2 heads rank"]:
    """One layer's tokens on all its query (0) and key (1) directions, in one product.

    It costs as much as computing queries and keys. They could be had from those by a small map per head,
    but that divides by the singular values of Wq and Wk, which for trained heads reach down to 1e-4 of
    the largest: float32 would leave little of the weaker modes.
    """
    directions = jnp.stack([u, v])
    return jnp.einsum("bnd,whdr->bnwhr", jnp.asarray(tokens, jnp.float32), directions, precision="highest")


@partial(jax.jit, static_argnames=("special", "grid"))
def _maps(tokens, modes: Modes, special: int, grid: tuple[int, int]) -> Maps:
    projected = jax.vmap(project)(tokens, modes.u, modes.v)
    layers, batch, _, _, heads, rank = projected.shape
    query, key = projected[:, :, :, 0], projected[:, :, :, 1]
    shape = (layers, batch, *grid, heads, rank)
    patches = (x[:, :, special:].reshape(shape) for x in (query, key))
    return Maps(*patches, query[:, :, :special], key[:, :, :special])


def query_key_maps(
    tokens: Float[Array | np.ndarray, "layers batch tokens embed"],
    modes: Modes,
    special: int,
    grid: tuple[int, int] | None = None,
) -> Maps:
    """Query and key maps of all layers, heads and modes (paper, section 2.2 and figure 4).

    Args:
      tokens: `forward(..., capture=("norm",))[1]["norm"]`, on which M acts, or "residual".
      modes: of the model that made the tokens, in the plain frame (no folding).
      special: tokens before the patches, `config.prefix_tokens`.
      grid: rows and columns of patches; by default a square.

    Raises:
      QkjaxError: tokens and modes do not fit, modes in another frame than the plain one, or patches that do not fill
        the grid.
    """
    require_plain(modes, "query_key_maps")
    layers, _, count, embed = tokens.shape
    if (layers, embed) != (modes.u.shape[0], modes.u.shape[2]):
        raise QkjaxError(f"tokens {tokens.shape} and modes {modes.u.shape} differ in layers or embed: of one model?")
    patches = count - special
    side = int(max(patches, 0) ** 0.5)
    grid = grid or (side, side)
    if grid[0] * grid[1] != patches:
        raise QkjaxError(f"{patches} patches do not fill a grid of {grid[0]} x {grid[1]}: give grid=(rows, columns)")
    return _maps(jnp.asarray(tokens), modes, special, tuple(grid))


@partial(jax.jit, static_argnames=("head_dim",))
def logits_from_modes(
    tokens: Float[Array, "layers batch tokens embed"],
    modes: Modes,
    query_direction: Float[Array, "layers heads embed"],
    key_direction: Float[Array, "layers heads embed"],
    constant: Float[Array, "layers heads"],
    head_dim: int,
) -> Float[Array, "layers batch heads tokens tokens"]:
    """The attention logits, put together again from all modes and the bias terms.

    sqrt(d) logit_ij = sum_n s_n (y_i . u_n) (y_j . v_n) + y_i . a + b . y_j + c, with a, b, c the first
    three of `bias_terms`. This is an identity for y the LayerNorm's output, up to rounding; for the
    residual stream it is not. (Relative position biases are not among it.)
    """
    require_plain(modes, "logits_from_modes")
    einsum = partial(jnp.einsum, precision="highest")
    projected = jax.vmap(project)(tokens, modes.u, modes.v)
    strength = modes.s[:, None, None]
    logits = einsum("lbihr,lbjhr->lbhij", projected[:, :, :, 0] * strength, projected[:, :, :, 1])
    of_query = einsum("lbid,lhd->lbhi", tokens, query_direction)[..., :, None]
    of_key = einsum("lbjd,lhd->lbhj", tokens, key_direction)[..., None, :]
    return (logits + of_query + of_key + constant[:, None, :, None, None]) / np.sqrt(head_dim).astype(np.float32)
