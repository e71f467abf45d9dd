"""Whom tokens attend to: like ones or others. (The paper's figure 2 asks by objects, this by embeddings.)"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def similarity_preference(
    attention: Float[Array, "heads queries patches"],
    tokens: Float[Array, "patches embed"],
    queries: Int[Array, "queries"],
) -> Float[Array, "heads"]:
    """Cosine similarity of tokens with those they attend to, weighted by attention, less that under uniform attention.

    Above 0 a head attends to tokens like the one that asks, below 0 to unlike ones; no masks needed. The token that
    asks is left out on both sides, since it is like itself whatever the head does.

    Args:
      attention: of some patches, towards all patches; the rest of it, on special tokens, is left out.
      tokens: embeddings of all patches.
      queries: the places of those that ask.

    Returns:
      Mean over queries.
    """
    length = jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), jnp.finfo(tokens.dtype).tiny)
    unit = tokens / length
    cosine = partial(jnp.matmul, precision="highest")(unit[queries], unit.T)
    others = jnp.arange(len(tokens))[None] != queries[:, None]
    given = attention * others[None]
    total = given.sum(-1)
    uniform = ((others * cosine).sum(-1) / others.sum(-1))[None]
    weighted = (given * cosine[None]).sum(-1) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, weighted - uniform, 0.0).mean(-1)  # 0 where no other patch gets any attention
