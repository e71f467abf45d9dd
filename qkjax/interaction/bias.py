"""Computes the terms that the query and key biases add to the attention logits."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.query_key import QueryKey


class BiasTerms(NamedTuple):
    """The bias terms a, b and c of sqrt(d) logit_ij = y_i M y_j + y_i . a + b . y_j + c.

    The vectors a and b and the number c are a = Wq bk, b = Wk bq and c = bq . bk. The terms y_i . a and c are the same
    for all keys j, so the softmax over j cancels both. The term b . y_j changes attention, because it makes a key
    attractive to every query. (The paper drops all three terms because they do not depend on the input, but this is
    true only for c.)

    The spread of a term is its standard deviation over normalised tokens with unit variance in all directions. Spreads
    have the units of attention logits (they are divided by sqrt(d)). Spreads are computed from the weights, without
    images.

    Attributes:
      query_direction: a.
      key_direction: b.
      constant: c.
      interaction_spread: spread of y_i M y_j.
      query_spread: spread of y_i . a.
      key_spread: spread of b . y_j.

    Example:
      >>> import qkjax
      >>> terms = qkjax.bias_terms(qkjax.load("dinov2-vits14-focus"))
      >>> query, key = relative_spreads(terms)
      >>> bool(key[0].mean() > 1)  # in layer 0 the key bias exceeds the interaction
      True
    """

    query_direction: Float[Array, "layers heads embed"]
    key_direction: Float[Array, "layers heads embed"]
    constant: Float[Array, "layers heads"]
    interaction_spread: Float[Array, "layers heads"]
    query_spread: Float[Array, "layers heads"]
    key_spread: Float[Array, "layers heads"]


def relative_spreads(bias: BiasTerms) -> tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]:
    """The spreads of the query bias term and of the key bias term, each divided by the spread of y_i M y_j.

    If M is zero, the ratios are infinite or NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        query, key = (np.asarray(x) / np.asarray(bias.interaction_spread) for x in (bias.query_spread, bias.key_spread))
    return query, key


def bias_terms(query_key: QueryKey) -> BiasTerms:
    """Computes the bias terms of all heads: their directions, the constant, and their spreads.

    Let y = g * x + norm_bias be the output of the LayerNorm. We assume that the normalised token x has unit variance in
    all directions except for the mean over the embedding, which C = I - 11^T / D removes. Then the spread of b . y is
    ||C diag(g) b||, and the spread of y_i M y_j is ||C diag(g) M diag(g) C||_F, each divided by sqrt(d). An RMSNorm
    does not remove the mean, so C is then the identity.
    """
    return _bias_terms(query_key[:5], centers=bool(query_key.norm_centers))


@partial(jax.jit, static_argnames="centers")
def _bias_terms(parameters: tuple, centers: bool) -> BiasTerms:
    query, key, query_bias, key_bias, scale = (jnp.asarray(x, jnp.float32) for x in parameters)
    head_dim = query.shape[-1]
    einsum = partial(jnp.einsum, precision="highest")
    towards_query = einsum("ldhk,lhk->lhd", query, key_bias)
    towards_key = einsum("ldhk,lhk->lhd", key, query_bias)

    def centered(folded, axis):
        return folded - folded.mean(axis, keepdims=True) if centers else folded

    def spread(direction):
        folded = direction * scale[:, None, :]
        return jnp.linalg.norm(centered(folded, -1), axis=-1) / np.sqrt(head_dim)

    def gram(kernel):
        folded = kernel * scale[:, :, None, None]
        folded = centered(folded, 1)
        return einsum("ldhk,ldhm->lhkm", folded, folded)

    # ||A B^T||_F^2 = tr(A^T A B^T B)
    strength = jnp.sqrt((gram(query) * gram(key)).sum((-1, -2)) / head_dim)
    constant = einsum("lhk,lhk->lh", query_bias, key_bias)
    return BiasTerms(towards_query, towards_key, constant, strength, spread(towards_query), spread(towards_key))
