"""Accesses parameters and intermediates by name. No other module of the model or of the analyses knows these names.

The parameter tree is that of big_vision. Functions that change a tree return a copy that shares all unchanged arrays
with the original. All functions accept numpy and JAX arrays, even within `jit`. Letters: L layers, D embed, H heads, d
head_dim.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.query_key import QueryKey

Stack = np.ndarray
ENCODER = "Transformer"
ATTENTION = "MultiHeadDotProductAttention_0"
NORM = "LayerNorm_0"
"""Name of the LayerNorm before queries and keys."""
PATCH_EMBEDDING, POSITION_EMBEDDING = "embedding", "pos_embedding"
HEADS = ("head", "head_dist", "pre_logits")
"""Names of the dense layers after pooling: classifier, DeiT's second classifier, and the tanh layer before both."""


@runtime_checkable
class QueryKeyParts(Protocol):
    """Protocol for objects with the query and key parameters of all layers, such as `QueryKey` and `EditedHeads`."""

    query_kernel: Any
    key_kernel: Any
    query_bias: Any
    key_bias: Any


def block_name(layer: int) -> str:
    """The name of a layer in the parameter tree."""
    return f"encoderblock_{layer}"


def output_name(layer: int) -> str:
    """The name of a layer in the intermediates of the encoder."""
    return f"block{layer:02d}"


def depth_of(params: Mapping) -> int:
    """The number of layers in a parameter tree."""
    return sum(name.startswith("encoderblock_") for name in params[ENCODER])


def layer_outputs(intermediates: Mapping, name: str) -> list[Array]:
    """Returns one intermediate array of every layer, from the first layer to the last.

    Args:
      intermediates: the second result of `ViT.apply`.
      name: "sa", "+sa", "mlp", "+mlp", or a name that was passed as `capture`; `forward` lists their shapes.

    Raises:
      KeyError: the name was not captured.

    Example:
      _, out = model.apply({"params": params}, images, capture=("norm", "attention"))
      for tokens, attention in zip(layer_outputs(out, "norm"), layer_outputs(out, "attention")):
          ...
    """
    encoder = intermediates["encoder"]
    depth = sum(key.startswith("block") for key in encoder)
    return [encoder[output_name(layer)][name] for layer in range(depth)]


def stacked_outputs(intermediates: Mapping, name: str) -> Float[Array, "layers ..."]:
    """Returns one intermediate of all layers, stacked in a single array; see `layer_outputs`."""
    return jnp.stack(layer_outputs(intermediates, name))


def attention_parameters(params: Mapping) -> Iterator[Mapping]:
    """The parameters of each layer's attention, from the first layer to the last.

    Yields:
      A dict with "query", "key", "value" and "out", each with a "kernel" and a "bias". The kernels of "query", "key"
      and "value" have shape (D, H, d), and the kernel of "out" has shape (H, d, D).
    """
    for layer in range(depth_of(params)):
        yield params[ENCODER][block_name(layer)][ATTENTION]


def map_attention(params: Mapping, change: Callable[[int, Mapping], Mapping]) -> dict:
    """Returns a copy of a parameter tree in which every layer has new attention parameters.

    Args:
      params: a Linen parameter tree.
      change: function that takes the index and the attention parameters of a layer (see `attention_parameters`), and
        returns the new attention parameters. The function must not modify its arguments.
    """
    blocks = dict(params[ENCODER])
    for layer, attention in enumerate(attention_parameters(params)):
        name = block_name(layer)
        blocks[name] = {**blocks[name], ATTENTION: change(layer, attention)}
    return {**params, ENCODER: blocks}


def query_key(params: Mapping) -> QueryKey:
    """Stacks the query and key parameters of all layers, in float32.

    Args:
      params: a Linen parameter tree, such as the `params` of the checkpoint that `load` returns.

    Raises:
      QkjaxError: the tree has no encoder blocks, or the shapes of the blocks differ.

    Example:
      query, key = qkjax.query_key(checkpoint.params)[:2]  # each (layers, embed, heads, head_dim)

    Example:
      >>> import qkjax
      >>> qkjax.query_key(qkjax.load("dinov2-vits14-focus").params).key_bias.shape
      (12, 6, 64)
    """
    try:
        blocks = params[ENCODER]
        layers = [blocks[block_name(layer)] for layer in range(depth_of(params))]
        if not layers:
            raise KeyError(block_name(0))
        centers = "bias" in layers[0][NORM]  # an RMSNorm has no bias, and does not subtract the mean
        parts = [
            (a["query"]["kernel"], a["key"]["kernel"], a["query"]["bias"], a["key"]["bias"], n["scale"],
             n["bias"] if centers else np.zeros_like(n["scale"]))
            for a, n in ((block[ATTENTION], block[NORM]) for block in layers)
        ]  # fmt: skip
        stacked = (np.stack([np.asarray(x, np.float32) for x in part]) for part in zip(*parts, strict=True))
        return QueryKey(*stacked, norm_centers=centers)
    except (KeyError, TypeError, ValueError) as error:
        raise QkjaxError(f"params is not the parameter tree of a ViT ({error}): pass qkjax.load(...).params") from error


def bare_tree(parts: QueryKey) -> dict:
    """Makes a tree with only queries, keys and the norms before them, from which `query_key` returns `parts`."""
    blocks = {}
    for layer in range(len(parts.query_kernel)):
        attention = {
            name: {"kernel": getattr(parts, f"{name}_kernel")[layer], "bias": getattr(parts, f"{name}_bias")[layer]}
            for name in ("query", "key")
        }
        norm = {"scale": parts.norm_scale[layer], "bias": parts.norm_bias[layer]}
        blocks[block_name(layer)] = {ATTENTION: attention, NORM: norm}
    return {ENCODER: blocks}


def query_key_kernels(
    params: Mapping,
) -> tuple[Float[Stack, "layers embed heads head_dim"], Float[Stack, "layers embed heads head_dim"]]:
    """The query and key kernels of all layers in float32, which `decompose` accepts as input."""
    return query_key(params)[:2]


def with_query_key(params: Mapping, parts: QueryKeyParts) -> dict:
    """Returns a copy of a parameter tree with new query and key kernels and biases. LayerNorms do not change.

    Args:
      params: a Linen parameter tree.
      parts: any object with the fields `query_kernel` and `key_kernel` of shape (L, D, H, d), and `query_bias` and
        `key_bias` of shape (L, H, d), such as a `QueryKey`. If d differs from the head dimension of the tree, call
        `widened_heads` first to widen values and outputs.

    Example:
      own = qkjax.query_key(checkpoint.params)
      params = with_query_key(checkpoint.params, own._replace(key_bias=0 * own.key_bias))
    """
    return with_attention(
        params,
        {
            "query": {"kernel": parts.query_kernel, "bias": parts.query_bias},
            "key": {"kernel": parts.key_kernel, "bias": parts.key_bias},
        },
    )


def with_attention(params: Mapping, parts: Mapping[str, Mapping]) -> dict:
    """Returns a copy of a parameter tree in which all layers have new query and key parameters.

    `with_query_key` does the same, but receives the parameters as an object with four fields.

    Args:
      params: a Linen parameter tree.
      parts: for each of "query" and "key", a "kernel" (layers, embed, heads, head_dim) and a "bias"
        (layers, heads, head_dim).
    """

    def change(layer: int, attention: Mapping) -> Mapping:
        own = {name: {leaf: stack[layer] for leaf, stack in part.items()} for name, part in parts.items()}
        return {**attention, **own}

    return map_attention(params, change)


def widened_heads(params: Mapping, columns: int) -> dict:
    """Returns a copy of a parameter tree in which zeros pad value and output kernels to `columns` columns per head.

    For given attention weights, the output of a head stays the same. Queries and keys keep their width; afterwards,
    replace their parameters with `with_query_key`.

    Args:
      params: a Linen parameter tree.
      columns: the new head_dim, at least as large as the old one.
    """

    def change(layer: int, attention: Mapping) -> Mapping:
        value = {name: _padded(leaf, -1, columns) for name, leaf in attention["value"].items()}
        out = {**attention["out"], "kernel": _padded(attention["out"]["kernel"], 1, columns)}
        return {**attention, "value": value, "out": out}

    return map_attention(params, change)


def _padded(leaf: np.ndarray, axis: int, size: int) -> np.ndarray:
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, size - leaf.shape[axis])
    return np.pad(np.asarray(leaf), widths)


def patch_kernel(params: Mapping) -> Float[Array | Stack, "height width channels embed"]:
    """The kernel of the patch embedding."""
    return params[PATCH_EMBEDDING]["kernel"]


def patch_bias(params: Mapping) -> Float[Array | Stack, "embed"]:
    """The bias of the patch embedding."""
    return params[PATCH_EMBEDDING]["bias"]


def with_patch_embedding(params: Mapping, **parts) -> dict:
    """Returns a copy of a tree whose patch embedding has a new `kernel` (height, width, channels, embed) or `bias`."""
    return {**params, PATCH_EMBEDDING: {**params[PATCH_EMBEDDING], **parts}}


def position_embedding(params: Mapping) -> Float[Array | Stack, "1 patches embed"]:
    """The learned position embedding of the patches, row by row."""
    return params[POSITION_EMBEDDING]


def with_position_embedding(params: Mapping, table: Float[Array | Stack, "1 patches embed"]) -> dict:
    """Returns a copy of a parameter tree with a new learned position embedding."""
    return {**params, POSITION_EMBEDDING: table}


def without_heads(params: Mapping) -> dict:
    """Returns a copy of a parameter tree without classifiers, and without the tanh layer before the classifiers."""
    return {name: part for name, part in params.items() if name not in HEADS}
