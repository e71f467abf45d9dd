"""Decomposes the attention logits of one image into modes, for a page that shows where each patch attends and why."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from qkjax.activations.contribution import contributions
from qkjax.activations.project import project
from qkjax.analyses.usable import require_finite
from qkjax.images.preprocess import Pixels, normalise
from qkjax.interaction.modes import Modes
from qkjax.report.pack import FINE, quantised
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint


class Attended(NamedTuple):
    """The terms of an image's attention logits, except those that are equal for all keys, which the softmax cancels:

        logit_ij = sum_n query[h, i, n] query_step[h, n] key[h, j, n] key_step[h, n] + bias[h, j] + other[h, i, j]

    The query map includes the factor s_n / sqrt(d). The tokens are the special tokens followed by the patches.

    Attributes:
      query, key: query and key maps in int16; see `qkjax.report.pack.quantised`. The error of a term is about 3e-5
        times the largest term of the same mode.
      query_step, key_step: factors by which the integers in `query` and `key` are multiplied.
      bias: the key bias term y_j . b / sqrt(d), where b is the key direction in `bias_terms`.
      other: relative position biases minus their mean over keys, in units of `other_step` (layers, heads). Empty if the
        model has no relative position biases.
      share: share of each mode in the variance of the logits; see `qkjax.activations.contribution`.
      bias_share: share of the key bias in the variance of the logits.
    """

    query: Int[np.ndarray, "layers heads tokens modes"]
    key: Int[np.ndarray, "layers heads tokens modes"]
    query_step: Float[np.ndarray, "layers heads modes"]
    key_step: Float[np.ndarray, "layers heads modes"]
    bias: Float[np.ndarray, "layers heads tokens"]
    other: Int[np.ndarray, "layers heads tokens keys"]
    other_step: Float[np.ndarray, "layers heads"]
    share: Float[np.ndarray, "layers heads modes"]
    bias_share: Float[np.ndarray, "layers heads"]


def attended(
    checkpoint: Checkpoint, modes: Modes, key_direction: Float[jax.Array, "layers heads embed"], pixels: Pixels
) -> Attended:
    """Computes all terms of the attention logits of one picture.

    Args:
      checkpoint: the model.
      modes: all modes of the checkpoint, in the plain frame (see `Frame`).
      key_direction: the field `key_direction` of `bias_terms`.
      pixels: the picture at the model's resolution.

    Raises:
      QkjaxError: a term is NaN or infinite.
    """
    images = normalise(pixels, checkpoint.preprocess)[None]
    terms = _attended(ViT(checkpoint.config), checkpoint.params, images, modes, key_direction)
    terms = Attended(*map(np.asarray, terms))
    values = {"query maps": terms.query_step, "key maps": terms.key_step, "bias terms": terms.bias}
    require_finite(values | {"position biases": terms.other_step}, "the picture")
    return terms


@partial(jax.jit, static_argnames=("model",))
def _attended(model: ViT, params, images, modes: Modes, key_direction) -> Attended:
    names = ("norm", "attention_logits", "attention")
    _, out = model.apply({"params": params}, images, capture=names)
    root = np.sqrt(model.config.head_dim).astype(np.float32)
    layers = []
    for layer in range(model.config.depth):
        tokens, logits, attention = (layer_outputs(out, name)[layer] for name in names)
        u, s, v = (x[layer] for x in modes)
        maps = project(tokens, u, v)[0]  # (tokens, 2, heads, modes)
        query, key = (maps[:, 0] * (s / root)[None]).transpose(1, 0, 2), maps[:, 1].transpose(1, 0, 2)
        bias = jnp.einsum("nd,hd->hn", tokens[0], key_direction[layer], precision="highest") / root
        other = logits[0] - jnp.einsum("hin,hjn->hij", query, key, precision="highest") - bias[:, None]
        other = other - other.mean(-1, keepdims=True)
        other = other if model.config.relative_positions else other[..., :0]
        shares = contributions(tokens, logits, attention, u, s, v, key_direction[layer], model.config.head_dim)
        (query, query_step), (key, key_step) = (quantised(x, (1,), FINE) for x in (query, key))
        other, other_step = quantised(other, (1, 2), FINE) if other.size else (other.astype(jnp.int16), bias[:, 0])
        share, bias_share = shares.variance[0], shares.key_bias_variance[0]
        layers.append(Attended(query, key, query_step, key_step, bias, other, other_step, share, bias_share))
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)
