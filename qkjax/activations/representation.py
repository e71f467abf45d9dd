"""Pure functions that measure distances between the outputs of a model before and after an edit.

(Edits are not in the paper.)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LN2 = 0.6931471805599453


def kullback_leibler(logits: Float[Array, "images classes"], edited: Float[Array, "images classes"]):
    """The KL divergence KL(before || after), in bits, of each image's class probabilities before and after the edit."""
    log_p, log_q = (jax.nn.log_softmax(x) for x in (logits, edited))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1) / LN2


def cosine(first: Float[Array, "images features"], second: Float[Array, "images features"]) -> Float[Array, "images"]:
    """The cosine similarity of two representations of each image; NaN if either representation is zero."""
    lengths = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return jnp.clip((first * second).sum(-1) / lengths, -1.0, 1.0)


def linear_cka(
    first: Float[Array | np.ndarray, "images features"], second: Float[Array | np.ndarray, "images features"]
) -> Float[Array, ""]:
    """The linear centred kernel alignment of two representations of an image set (Kornblith et al. 2019, equation 4).

    The alignment is 1 if the representations are equal up to rotation and scale.
    """
    dot = partial(jnp.matmul, precision="highest")
    first, second = (jnp.asarray(x - x.mean(axis=0, keepdims=True)) for x in (first, second))
    return (dot(first.T, second) ** 2).sum() / (
        jnp.linalg.norm(dot(first.T, first)) * jnp.linalg.norm(dot(second.T, second))
    )
