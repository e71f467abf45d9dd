"""Computes query and key maps: projections of the tokens of an image onto the two directions of every mode.

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
from qkjax.runtime.precision import full_precision

Stream = Literal["norm", "residual"]
"""The tokens to project. "norm" is the output of the LayerNorm before attention, on which M acts. "residual" is the
residual stream before this LayerNorm, which the authors' published code projects."""


class Maps(NamedTuple):
    """Projections of all tokens onto all modes: `query[..., h, n]` is y . u_n, and `key[..., h, n]` is y . v_n.

    `query[l, b, :, :, h, n]` is a map over the patch grid, with rows from top to bottom. `query_special` and
    `key_special` are the projections of the class token and the registers, in the model's order.
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
    """Projects the tokens of one layer onto the query directions (index 0) and key directions (index 1) of all modes.

    One matrix product computes both projections, and costs as much as computing queries and keys. Alternatively, a
    small linear map per head could compute the projections from queries and keys. But this map would divide by the
    singular values of Wq and Wk. In trained heads, some singular values are only 1e-4 times the largest, so weak modes
    would be inaccurate in float32.
    """
    directions = jnp.stack([u, v])
    return jnp.einsum("bnd,whdr->bnwhr", jnp.asarray(tokens, jnp.float32), directions, precision=full_precision())


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
    """Computes query and key maps of all layers, heads and modes (the paper, section 2.2 and figure 4).

    Args:
      tokens: tokens of all layers, as captured by `forward(..., capture=("norm",))[1]["norm"]`; "residual" may replace
        "norm".
      modes: modes of the same model, in the plain frame (see `Frame`).
      special: number of special tokens before the patches, which is `config.prefix_tokens`.
      grid: number of rows and columns of patches; by default a square grid.

    Raises:
      QkjaxError: tokens and modes differ in the number of layers or in the embedding dimension, the modes are not in
        the plain frame, or the patches do not fill the grid.
    """
    require_plain(modes, "query_key_maps")
    layers, _, count, embed = tokens.shape
    if (layers, embed) != (modes.u.shape[0], modes.u.shape[2]):
        raise QkjaxError(
            f"tokens of shape {tokens.shape} and modes of shape {modes.u.shape} differ in the number of layers or the "
            "embedding dimension: pass tokens and modes of the same model"
        )
    patches = count - special
    side = int(max(patches, 0) ** 0.5)
    grid = grid or (side, side)
    if grid[0] * grid[1] != patches:
        raise QkjaxError(f"{patches} patches do not fill a grid of {grid[0]} x {grid[1]}: pass grid=(rows, columns)")
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
    """Computes the attention logits from all modes and the bias terms.

    The logits are defined by sqrt(d) logit_ij = sum_n s_n (y_i . u_n) (y_j . v_n) + y_i . a + b . y_j + c, where a, b
    and c are the first three fields of `BiasTerms`. If y is the output of the LayerNorm, the result equals the logits
    of the model without relative position biases, up to rounding. If y is the residual stream, the result differs from
    the logits.
    """
    require_plain(modes, "logits_from_modes")
    einsum = partial(jnp.einsum, precision="highest")
    projected = jax.vmap(project)(tokens, modes.u, modes.v)
    strength = modes.s[:, None, None]
    logits = einsum("lbihr,lbjhr->lbhij", projected[:, :, :, 0] * strength, projected[:, :, :, 1])
    query_bias = einsum("lbid,lhd->lbhi", tokens, query_direction)[..., :, None]
    key_bias = einsum("lbjd,lhd->lbhj", tokens, key_direction)[..., None, :]
    return (logits + query_bias + key_bias + constant[:, None, :, None, None]) / np.sqrt(head_dim).astype(np.float32)
