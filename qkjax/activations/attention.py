"""Measures how much tokens attend to regions of an image (the paper, figure 2), and to tokens similar to the query."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LN2 = 0.6931471805599453


class RegionAttention(NamedTuple):
    """The attention of given query tokens to regions of the image, for each head.

    Attributes:
      mass: attention to each region, normalised so that the total over all patches is 1.
      own: attention of the query to itself, normalised in the same way.
      special: attention to the class token and registers, as a share of the attention to all tokens.
    """

    mass: Float[Array, "heads queries regions"]
    own: Float[Array, "heads queries"]
    special: Float[Array, "heads queries"]


def region_attention(
    attention: Float[Array, "heads queries tokens"],
    regions: Float[Array, "regions patches"],
    places: Int[Array, "queries"],
) -> RegionAttention:
    """Computes inner products of attention maps with region masks (the paper, section 3.1).

    As in the paper, an attention map sums to 1 over the patches. The map excludes the special tokens, which precede the
    patches; the function returns the attention to them separately.

    Args:
      attention: attention of the queries to all tokens.
      regions: share of each patch that each region covers; the shares of a patch sum to 1.
      places: indices of the queries among the patches.
    """
    special = attention.shape[-1] - regions.shape[-1]
    on_patches = attention[..., special:]
    total = on_patches.sum(-1, keepdims=True)
    share = on_patches / jnp.where(total > 0, total, 1.0)
    mass = jnp.einsum("hqp,rp->hqr", share, regions, precision="highest")
    own = jnp.take_along_axis(share, places[None, :, None], axis=-1)[..., 0]
    return RegionAttention(mass, own, attention[..., :special].sum(-1))


def similarity_preference(
    attention: Float[Array, "heads queries patches"],
    tokens: Float[Array, "patches embed"],
    queries: Int[Array, "queries"],
) -> Float[Array, "heads"]:
    """Mean cosine similarity between a query and all other tokens, weighted by attention, minus the unweighted mean.

    The preference is above 0 if a head attends to tokens similar to the query, and below 0 if the head attends to
    tokens that differ from the query. No masks are needed. Both means exclude the query itself, because the similarity
    of a token to itself does not depend on the head.

    Args:
      attention: attention of the queries to all patches, without special tokens.
      tokens: embeddings of all patches.
      queries: indices of the queries among the patches.

    Returns:
      For each head, the preference averaged over queries.
    """
    length = jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), jnp.finfo(tokens.dtype).tiny)
    unit = tokens / length
    cosine = partial(jnp.matmul, precision="highest")(unit[queries], unit.T)
    others = jnp.arange(len(tokens))[None] != queries[:, None]
    on_others = attention * others[None]
    total = on_others.sum(-1)
    uniform = ((others * cosine).sum(-1) / others.sum(-1))[None]
    weighted = (on_others * cosine[None]).sum(-1) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, weighted - uniform, 0.0).mean(-1)  # the value is 0 if no other patch receives attention


def entropy(attention: Float[Array, "*heads queries keys"]) -> Float[Array, "*heads"]:
    """The entropy (in bits) of the attention over keys, averaged over queries.

    The entropy is 0 if all attention is on one key, and log2(keys) if attention is uniform.
    """
    return jax.scipy.special.entr(attention).sum(-1).mean(-1) / LN2


def jensen_shannon(
    first: Float[Array, "*heads queries keys"], second: Float[Array, "*heads queries keys"]
) -> Float[Array, "*heads"]:
    """The Jensen-Shannon divergence (in bits) between two attention distributions over keys, averaged over queries.

    The divergence is 0 if the distributions are equal, and 1 if they are disjoint.
    """
    middle = (first + second) / 2
    entr = jax.scipy.special.entr
    return (entr(middle) - (entr(first) + entr(second)) / 2).sum(-1).mean(-1) / LN2
