"""Where the parts of the query-key interaction lie in the parameter tree."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError

Stack = np.ndarray


class Attention(NamedTuple):
    """What makes the attention logits of all layers: L layers, D embed, H heads, d head_dim.

    logit_ij = (y_i Wq + bq) . (y_j Wk + bk) / sqrt(d), y = norm_scale * normalised token + norm_bias.
    """

    query_kernel: Float[Stack, "layers embed heads head_dim"]
    key_kernel: Float[Stack, "layers embed heads head_dim"]
    query_bias: Float[Stack, "layers heads head_dim"]
    key_bias: Float[Stack, "layers heads head_dim"]
    norm_scale: Float[Stack, "layers embed"]
    norm_bias: Float[Stack, "layers embed"]


def attention(params: Mapping) -> Attention:
    """Stacks the query and key parameters of all layers, in float32.

    Args:
      params: a Linen tree, as `load` gives it.

    Raises:
      QkjaxError: no encoder blocks in the tree, or blocks of unequal shapes.
    """
    try:
        blocks = params["Transformer"]
        layers = [blocks[f"encoderblock_{i}"] for i in range(sum(k.startswith("encoderblock_") for k in blocks))]
        if not layers:
            raise KeyError("encoderblock_0")
        parts = [
            (a["query"]["kernel"], a["key"]["kernel"], a["query"]["bias"], a["key"]["bias"], n["scale"], n["bias"])
            for a, n in ((block["MultiHeadDotProductAttention_0"], block["LayerNorm_0"]) for block in layers)
        ]
        return Attention(*(np.stack([np.asarray(x, np.float32) for x in part]) for part in zip(*parts, strict=True)))
    except (KeyError, TypeError, ValueError) as error:
        raise QkjaxError(f"the tree is not that of a ViT: {error}; give `params` as `qkjax.load` returns it") from error


def query_key_kernels(
    params: Mapping,
) -> tuple[Float[Stack, "layers embed heads head_dim"], Float[Stack, "layers embed heads head_dim"]]:
    """The query and key kernels of all layers, float32, for `decompose`."""
    return attention(params)[:2]


def with_attention(params: Mapping, parts: Mapping[str, Mapping]) -> dict:
    """The tree with other query and key parameters in all layers.

    Args:
      params: a Linen tree.
      parts: for "query" and "key" a "kernel" (layers, embed, heads, head_dim) and a "bias" (layers, heads, head_dim).
    """
    blocks = dict(params["Transformer"])
    for layer in range(len(parts["query"]["kernel"])):
        block = blocks[f"encoderblock_{layer}"]
        own = {name: {leaf: stack[layer] for leaf, stack in part.items()} for name, part in parts.items()}
        attention = {**block["MultiHeadDotProductAttention_0"], **own}
        blocks[f"encoderblock_{layer}"] = {**block, "MultiHeadDotProductAttention_0": attention}
    return {**params, "Transformer": blocks}
