"""Which tokens attend to which: to their own category, another, the background (figure 2); to similar tokens."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LN2 = 0.6931471805599453


class Attended(NamedTuple):
    """Where the attention of some tokens of an image falls, by head.

    Attributes:
      mass: on each region; the mass on all patches is 1.
      own: the part of it on the token itself.
      special: share of all attention on class token and registers.
    """

    mass: Float[Array, "heads queries regions"]
    own: Float[Array, "heads queries"]
    special: Float[Array, "heads queries"]


def attended(
    attention: Float[Array, "heads queries tokens"],
    regions: Float[Array, "regions patches"],
    places: Int[Array, "queries"],
) -> Attended:
    """Inner products of attention maps with masks (the paper, section 3.1).

    As in the paper, a map sums to one over the patches. Special tokens, which come first, are left out; their share is
    returned separately.

    Args:
      attention: of the queries, over all tokens.
      regions: the share of each patch that is each region; they sum to 1.
      places: of the queries among the patches.
    """
    special = attention.shape[-1] - regions.shape[-1]
    of_patches = attention[..., special:]
    total = of_patches.sum(-1, keepdims=True)
    share = of_patches / jnp.where(total > 0, total, 1.0)
    mass = jnp.einsum("hqp,rp->hqr", share, regions, precision="highest")
    own = jnp.take_along_axis(share, places[None, :, None], axis=-1)[..., 0]
    return Attended(mass, own, attention[..., :special].sum(-1))


def similarity_preference(
    attention: Float[Array, "heads queries patches"],
    tokens: Float[Array, "patches embed"],
    queries: Int[Array, "queries"],
) -> Float[Array, "heads"]:
    """Cosine similarity of tokens with those they attend to, weighted by attention, less that under uniform attention.

    Above 0 a head attends to tokens similar to the query, below 0 to different ones; it needs no masks. The query
    itself is left out on both sides, since it is similar to itself whatever the head does.

    Args:
      attention: of some patches, towards all patches; the rest of it, on special tokens, is left out.
      tokens: embeddings of all patches.
      queries: their places among the patches.

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


def entropy(attention: Float[Array, "*heads queries keys"]) -> Float[Array, "*heads"]:
    """Entropy of the attention over keys in bits, mean over queries: 0 for one key, log2 of their number if uniform."""
    return jax.scipy.special.entr(attention).sum(-1).mean(-1) / LN2


def jensen_shannon(
    first: Float[Array, "*heads queries keys"], second: Float[Array, "*heads queries keys"]
) -> Float[Array, "*heads"]:
    """Jensen-Shannon divergence of two attentions over keys, in bits, mean over queries: 0 equal, 1 apart."""
    middle = (first + second) / 2
    entr = jax.scipy.special.entr
    return (entr(middle) - (entr(first) + entr(second)) / 2).sum(-1).mean(-1) / LN2
