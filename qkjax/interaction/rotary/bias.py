"""The bias terms of the logits of heads with rotary positions.

    sqrt(d) logit_ij = y_i M(delta) y_j^T + y_i Wq R(delta) bk^T + bq R(delta) Wk^T y_j^T + bq R(delta) bk^T

With rotary positions, all three bias terms depend on the key through the offset, so the softmax cancels none of them.
The second term attracts a query to offsets, the third makes keys attractive to all queries at an offset, and the last
one is a preference for offsets that is the same for all tokens.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.bias import BiasTerms
from qkjax.interaction.rotary.mean import coherence
from qkjax.interaction.rotary.place import for_heads, inner_products, moments
from qkjax.interaction.rotary.rotation import Angles, Pairs, Rotation, by_plane, on_columns, rotate

Tokens = Float[Array | np.ndarray, "batch tokens heads head_dim"]
Bias = Float[Array | np.ndarray, "heads head_dim"]


class BiasLogits(NamedTuple):
    """The bias terms of the logits of one layer, in units of the logits (divided by sqrt(d)).

    Attributes:
      query: y_i Wq R(delta) bk^T.
      key: bq R(delta) Wk^T y_j^T.
      constant: bq R(delta) bk^T.
    """

    query: Float[Array, "batch heads tokens tokens"]
    key: Float[Array, "batch heads tokens tokens"]
    constant: Float[Array, "heads tokens tokens"]


def bias_logits(
    query: Tokens,
    key: Tokens,
    query_bias: Bias,
    key_bias: Bias,
    angles: Float[Array | np.ndarray, "tokens planes"] | Float[Array | np.ndarray, "tokens heads planes"],
    pairs: Pairs = "half",
) -> BiasLogits:
    """Computes the three bias terms of the logits of one layer.

    Args:
      query, key: y Wq and y Wk, before the rotation and without the biases.
      query_bias, key_bias: bq and bk; zeros if the model has none.
      angles: angles of all tokens, 0 for tokens that are not rotated.

    Example:
      >>> import numpy as np
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 5, 3, 4)).astype(np.float32)
      >>> bias = np.ones((3, 4), np.float32)
      >>> bias_logits(query, key, bias, 0 * bias, np.outer(np.arange(5), [1.0, 0.1])).key.shape
      (1, 3, 5, 5)
    """
    angles = angles if angles.ndim == 3 else angles[:, None, :]
    shape = (len(angles), *query_bias.shape)
    biases = (jnp.broadcast_to(jnp.asarray(x, jnp.float32)[None], shape) for x in (query_bias, key_bias))
    bq, bk = (rotate(x, angles, pairs) for x in biases)
    q, k = (rotate(jnp.asarray(x, jnp.float32), angles, pairs) for x in (query, key))
    root = np.sqrt(query.shape[-1]).astype(np.float32)
    return BiasLogits(
        jnp.einsum("bihd,jhd->bhij", q, bk, precision="highest") / root,
        jnp.einsum("ihd,bjhd->bhij", bq, k, precision="highest") / root,
        jnp.einsum("ihd,jhd->hij", bq, bk, precision="highest") / root,
    )


def spread(
    query: Float[Array | np.ndarray, "layers query_embed heads head_dim"],
    key: Float[Array | np.ndarray, "layers key_embed heads head_dim"],
    angles: Angles,
    pairs: Pairs = "half",
) -> Float[Array, "layers heads"]:
    """Root of E ||Wq R(delta) Wk^T||_F^2 / d over pairs of positions: the spread of a term of the logits.

    The spread is the standard deviation of y_i M(delta) y_j^T / sqrt(d) over positions and over tokens with unit
    variance in all directions; the kernels must include the LayerNorm scale and centring (see
    `qkjax.interaction.bias.bias_terms`). For the bias terms, pass a bias as a kernel with embed = 1:
    `spread(query_bias[:, None], key, angles)` is the spread of the third term, and `spread(query_bias[:, None],
    key_bias[:, None], angles)` that of the last.
    """
    planes = (by_plane(jnp.asarray(x, jnp.float32), pairs)[None] for x in (query, key))
    square = (for_heads(moments(angles)) * inner_products(*planes)).sum((0, -1, -2))
    return jnp.sqrt(jnp.maximum(square, 0) / query.shape[-1])


def mean_bias_terms(
    query: Float[Array | np.ndarray, "layers embed heads head_dim"],
    key: Float[Array | np.ndarray, "layers embed heads head_dim"],
    query_bias: Float[Array | np.ndarray, "layers heads head_dim"],
    key_bias: Float[Array | np.ndarray, "layers heads head_dim"],
    folded: tuple[Float[np.ndarray, "layers embed heads head_dim"], Float[np.ndarray, "layers embed heads head_dim"]],
    rotation: Rotation,
) -> BiasTerms:
    """The bias terms of `BiasTerms` for heads with rotary positions.

    The directions and the constant are means over all pairs of positions: a = Wq diag(c) bk, b = Wk diag(c) bq and
    c = bq diag(c) bk. The softmax cancels none of the terms, because each depends on the offset. The spreads are those
    of `spread`, over normalised tokens and over all pairs of positions.

    Args:
      query, key: kernels before the rotation.
      query_bias, key_bias: bq and bk.
      folded: the kernels with the LayerNorm scale and centring, which act on normalised tokens.
      rotation: the rotation of a grid.
    """
    c = np.asarray(coherence(rotation.angles))
    c = on_columns(c, rotation.pairs).astype(np.float32)
    einsum = partial(jnp.einsum, precision="highest")
    row = [jnp.asarray(bias, jnp.float32)[:, None] for bias in (query_bias, key_bias)]
    size = partial(spread, angles=rotation.angles, pairs=rotation.pairs)
    return BiasTerms(
        einsum("ldhk,lhk->lhd", query, key_bias * c),
        einsum("ldhk,lhk->lhd", key, query_bias * c),
        einsum("lhk,lhk->lh", query_bias, key_bias * c),
        size(*folded),
        size(folded[0], row[1]),
        size(row[0], folded[1]),
    )
