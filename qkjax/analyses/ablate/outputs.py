"""Computes the outputs of a model, and the distances between the outputs of an edited and the original model.

(Ablations are not in the paper.) Letters: L layers, H heads, Q queries, N tokens.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.activations.attention import entropy, jensen_shannon, similarity_preference
from qkjax.activations.representation import cosine, kullback_leibler
from qkjax.interaction.edit import EditedHeads
from qkjax.passes.inputs import normalised_pixels
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs, with_query_key

Ndarray = np.ndarray


class Outputs(NamedTuple):
    """Outputs of a model for images.

    Attributes:
      representation: the input of the classifier: the pooled token, or the mean over patches if there is no pooling.
      tokens: output tokens of the last layer at the query patches.
      logits: logits of the classes; None if there is no classifier.
      attention: attention of the class token, if there is one, and of the query patches.
    """

    representation: Float[Array | Ndarray, "images features"]
    tokens: Float[Array | Ndarray, "images patches embed"]
    logits: Float[Array | Ndarray, "images classes"] | None
    attention: Float[Array | Ndarray, "images L H Q N"]


class Effects(NamedTuple):
    """Effects of an edit on each image. An effect is NaN if it needs a class token or classifier that the model lacks.

    Attributes:
      representation_cosine: cosine between the representations in the edited and the original model.
      token_cosine: cosine between the tokens of the last layer in the edited and the original model, averaged over the
        query patches.
      logits_kl: KL divergence KL(original || edited) of the class probabilities, in bits.
      attention_js: Jensen-Shannon divergence between the attention of the query patches in the edited and the original
        model, in bits.
      class_attention_js: Jensen-Shannon divergence between the attention of the class token in the edited and the
        original model, in bits.
      attention_entropy: entropy of the attention of the query patches in the edited model, in bits.
      preference: preference for similar tokens in the edited model; see `similarity_preference`.
    """

    representation_cosine: Float[Array | Ndarray, "images"]
    token_cosine: Float[Array | Ndarray, "images"]
    logits_kl: Float[Array | Ndarray, "images"]
    attention_js: Float[Array | Ndarray, "images L H"]
    class_attention_js: Float[Array | Ndarray, "images L H"]
    attention_entropy: Float[Array | Ndarray, "images L H"]
    preference: Float[Array | Ndarray, "images L H"]


def _outputs(model: ViT, params, scaling, pixels, places) -> tuple[Outputs, Array, Array]:
    """Runs one forward pass; returns the outputs, the entropy of attention, and the preference for similar tokens."""
    images = normalised_pixels(pixels, scaling)
    prefix, first = model.config.prefix_tokens, int(model.config.class_token)
    queries = jnp.concatenate([jnp.arange(first), places + prefix])
    _, out = model.apply({"params": params}, images, capture=("norm", "attention"), queries=queries)
    attention = jnp.stack(layer_outputs(out, "attention"), axis=1)
    of_patches = attention[..., first:, :]
    preferred = jax.vmap(similarity_preference, (0, 0, None))
    preference = [
        preferred(of_patches[:, layer, ..., prefix:], norm[:, prefix:].astype(jnp.float32), places)
        for layer, norm in enumerate(layer_outputs(out, "norm"))
    ]
    pooled, tokens, logits = (out.get(name) for name in ("pre_logits", "encoded", "logits"))
    # Without pooling, every token has its own representation and logits; both are averaged over patches.
    pooled, logits = (x if x is None or x.ndim == 2 else x[:, prefix:].mean(axis=1) for x in (pooled, logits))
    outputs = Outputs(pooled, tokens[:, prefix + places], logits, attention)
    outputs = jax.tree.map(lambda x: x.astype(jnp.float32), outputs)
    return outputs, entropy(of_patches), jnp.stack(preference, axis=1)


def _effects(model: ViT, original: Outputs, edited: Outputs, entropies, preference) -> Effects:
    first = int(model.config.class_token)
    nothing = jnp.full(entropies.shape, jnp.nan)
    token = jax.vmap(cosine)(original.tokens, edited.tokens).mean(-1)
    kl = nothing[:, 0, 0] if original.logits is None else kullback_leibler(original.logits, edited.logits)
    patches = jensen_shannon(original.attention[..., first:, :], edited.attention[..., first:, :])
    classes = nothing
    if first:
        classes = jensen_shannon(original.attention[..., :first, :], edited.attention[..., :first, :])
    same = cosine(original.representation, edited.representation)
    return Effects(same, token, kl, patches, classes, entropies, preference)


@partial(jax.jit, static_argnames="model")
def original_outputs(model: ViT, params, scaling, pixels, places) -> tuple[Outputs, Effects]:
    """Outputs of the original model, and the effects that result if the original model is compared with itself."""
    outputs, *own = _outputs(model, params, scaling, pixels, places)
    return outputs, _effects(model, outputs, outputs, *own)


@partial(jax.jit, static_argnames="model")
def edited_outputs(model: ViT, params, heads: EditedHeads, scaling, pixels, places, original: Outputs):
    """Computes the effects of an edit, and the representations and logits of the edited model.

    All edits share one compiled program, since the edited kernels are arguments of the program.
    """
    outputs, *own = _outputs(model, with_query_key(params, heads), scaling, pixels, places)
    return _effects(model, original, outputs, *own), outputs.representation, outputs.logits
