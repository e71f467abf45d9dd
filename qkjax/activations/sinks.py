"""Measures attention sinks: keys to which most queries attend, such as the class token, a register or one patch.

Letters: B images, H heads, N tokens, S special tokens (class token and registers, which precede the patches).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qkjax.activations.attention import LN2


class SinkMeasures(NamedTuple):
    """Measures of the keys of one layer; the queries are all patches. K = S + 2 keys: the special tokens, the mean over
    patches, and the top patch, which is the patch with the largest share.

    Attributes:
      share: mean over the queries of the attention to each key.
      share_without_bias: the same, if the key bias is removed from the logits of this layer, for the same top patch.
      top_patch: index of the top patch, row by row.
      top_share_without_bias: largest share of a patch without the key bias, which may be another patch.
      entropy: entropy in bits of the attention over keys, averaged over queries.
      value_norm: length of the value of each key.
    """

    share: Float[Array, "B H K"]
    share_without_bias: Float[Array, "B H K"]
    top_patch: Int[Array, "B H"]
    top_share_without_bias: Float[Array, "B H"]
    entropy: Float[Array, "B H"]
    value_norm: Float[Array, "B H K"]


def sink_measures(
    attention: Float[Array, "B H N N"],
    without_bias: Float[Array, "B H N N"],
    value: Float[Array, "B N H d"],
    special: int,
) -> SinkMeasures:
    """Computes how much attention each kind of key receives from the patches, and the length of its value.

    Args:
      attention: "attention" of a layer, as `forward` captures it.
      without_bias: attention without the key bias; see `attention_without_key_bias`.
      value: "value" of the layer.
      special: number of special tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> attention = jnp.full((1, 2, 5, 5), 0.2)
      >>> sink_measures(attention, attention, jnp.ones((1, 5, 2, 4)), 1).share[0, 0].tolist()
      [0.20000000298023224, 0.20000000298023224, 0.20000000298023224]
    """
    shares, without = (x[:, :, special:].astype(jnp.float32).mean(2) for x in (attention, without_bias))
    top = shares[..., special:].argmax(-1)
    length = jnp.linalg.norm(value.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    by_key = partial(_by_key, top=top, special=special)
    entropy = jax.scipy.special.entr(attention[:, :, special:]).sum(-1).mean(-1) / LN2
    return SinkMeasures(by_key(shares), by_key(without), top, without[..., special:].max(-1), entropy, by_key(length))


def attention_without_key_bias(
    logits: Float[Array, "B H N N"], key: Float[Array, "B N H d"], query_bias: Float[Array, "H d"]
) -> Float[Array, "B H N N"]:
    """The attention without the term bq . k_j / sqrt(d), which the query bias bq adds to all logits of key j.

    The term contains the key bias term b . y_j with b = Wk bq (see `qkjax.interaction.bias.BiasTerms`), and a constant
    that the softmax cancels. The formula does not hold for rotary positions.

    Args:
      logits, key: "attention_logits" and "key" of a layer, as `forward` captures them.
      query_bias: bias of the queries of the layer.
    """
    term = jnp.einsum("bnhd,hd->bhn", key, query_bias, precision="highest") / jnp.sqrt(float(key.shape[-1]))
    return jax.nn.softmax(logits - term[:, :, None].astype(logits.dtype), axis=-1)


def _by_key(values: Float[Array, "B H N"], top: Int[Array, "B H"], special: int) -> Float[Array, "B H K"]:
    patches = values[..., special:]
    largest = jnp.take_along_axis(patches, top[..., None], -1)
    return jnp.concatenate([values[..., :special], patches.mean(-1, keepdims=True), largest], -1)
