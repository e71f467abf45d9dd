"""Computes query and key maps of a model with rotary positions: the factors of each mode's exact term in the logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.activations.project import Maps
from qkjax.interaction.rotary.exact import project_rotated
from qkjax.interaction.rotary.rotation import Pairs, rotate

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]
HeadMap = Float[Array | np.ndarray, "layers heads head_dim rank"]


def rotated_maps(
    tokens: Float[Array | np.ndarray, "layers batch tokens embed"],
    kernels: tuple[Kernel, Kernel],
    head_maps: tuple[HeadMap, HeadMap],
    angles: Float[Array | np.ndarray, "tokens planes"] | Float[Array | np.ndarray, "layers tokens planes"],
    pairs: Pairs,
    special: int,
    grid: tuple[int, int],
) -> Maps:
    """Projects y R(p) of every token onto all modes of Mbar: y_i Wq R(p_i) F_n and y_j Wk R(p_j) G_n.

    The product s_n query_i key_j / sqrt(d) is the exact term of mode n in the logit of i and j, without biases. The
    mean of each projection over all places is y . u_n or y . v_n, the map of a model without rotary positions. In a
    layer with windows, the product is a term of the logits only if i and j are in the same window.

    Args:
      tokens: tokens of all layers, such as the captured "norm".
      kernels: query and key kernels, before the rotation.
      head_maps: F and G; the fields `query` and `key` of `qkjax.interaction.rotary.exact.HeadMaps`.
      angles: angles of all tokens, 0 for tokens that are not rotated; if they differ between layers, of each layer.
      pairs: the columns of each plane.
      special: number of special tokens before the patches.
      grid: number of rows and columns of patches.
    """
    how = {"pairs": pairs, "special": special, "grid": grid}
    return _rotated_maps(*map(jnp.asarray, (tokens, *kernels, *head_maps, angles)), **how)


@partial(jax.jit, static_argnames=("pairs", "special", "grid"))
def _rotated_maps(tokens, query_kernel, key_kernel, query_map, key_map, angles, pairs, special, grid) -> Maps:
    def layer(arguments):
        y, *kernels, f, g, angles = arguments
        rotated = (
            rotate(jnp.einsum("bnd,dhk->bnhk", y.astype(jnp.float32), w, precision="highest"), angles[:, None], pairs)
            for w in kernels
        )
        return project_rotated(*rotated, f, g)

    by_layer = jnp.broadcast_to(angles, (len(tokens), *angles.shape[-2:]))
    projected = jax.lax.map(layer, (tokens, query_kernel, key_kernel, query_map, key_map, by_layer))
    layers, batch, _, heads, rank = projected[0].shape
    patches = (x[:, :, special:].reshape(layers, batch, *grid, heads, rank) for x in projected)
    return Maps(*patches, *(x[:, :, :special] for x in projected))
