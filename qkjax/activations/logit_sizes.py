"""Computes the sizes of the parts of each interaction in the attention logits of images."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.activations.project import project
from qkjax.interaction.dose import Sizes
from qkjax.runtime.precision import full_precision


def logit_sizes(
    tokens: Float[Array | np.ndarray, "batch tokens embed"],
    u: Float[Array | np.ndarray, "heads embed rank"],
    s: Float[Array | np.ndarray, "heads rank"],
    v: Float[Array | np.ndarray, "heads embed rank"],
    key_direction: Float[Array | np.ndarray, "heads embed"],
    present: Bool[Array | np.ndarray, "batch"],
) -> Sizes:
    """Sizes in the measure "logits" (see `qkjax.interaction.dose`) of the heads of one layer, summed over images.

    One pass over the images suffices for all modes and edits, because the sum over queries and keys of a product of two
    modes is a product of a sum over queries and a sum over keys.

    Args:
      tokens: output of the LayerNorm before queries and keys, of all tokens that take part in attention.
      u, s, v: modes of the layer, in the plain frame (see `Frame`).
      key_direction: w = Wk bq of each head; see `BiasTerms`.
      present: the images that are summed.

    Returns:
      `Sizes` without the dimension of layers: (heads, rank, rank) for modes and rotations, and (heads,) for the others.

    Example:
      >>> import numpy as np
      >>> tokens, u, v = np.ones((2, 5, 3)), np.eye(3)[None], np.eye(3)[None]
      >>> sizes = logit_sizes(tokens, u, np.ones((1, 3)), v, np.ones((1, 3)), np.array([True, False]))
      >>> float(abs(sizes.modes).max())  # all keys are equal, so no mode changes attention
      0.0
    """
    count, rank = tokens.shape[1], u.shape[-1]
    query, key = jnp.moveaxis(project(tokens, u, v), 2, 0)
    of_query, of_key = query - query.mean(1, keepdims=True), key - key.mean(1, keepdims=True)
    scale = jnp.where(present, 1 / (count**2 * rank), 0)[:, None, None, None]

    def gram(first, second):
        return jnp.einsum("bihn,bihm->bhnm", first, second, precision=full_precision())

    def of_interaction(products):
        return jnp.einsum("hn,bhnm,hm->h", s, products, s, precision=full_precision())

    queries, between = gram(query, query), gram(query, key) * scale
    queries, keys = queries * scale, gram(key, key) * scale
    # y_i M y_j = sum_n s_n (y_i u_n) (v_n y_j), and y_i M^T y_j = sum_n s_n (y_i v_n) (u_n y_j)
    modes = queries * gram(of_key, of_key)
    forward, backward = of_interaction(modes), of_interaction(keys * gram(of_query, of_query))
    both = of_interaction(between * gram(of_key, of_query))
    bias = jnp.einsum("bid,hd->bih", tokens, key_direction, precision=full_precision())
    bias = ((bias - bias.mean(1, keepdims=True)) ** 2 * scale[..., 0] * count).sum((0, 1))
    return Sizes(
        modes.sum(0),
        (queries * gram(of_key - of_query, of_key - of_query)).sum(0),
        (forward + backward + 2 * both) / 4,
        jnp.maximum(forward + backward - 2 * both, 0) / 4,
        bias,
    )
