"""Where the parts of the query-key interaction lie in the parameter tree."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError
from qkjax.interaction.query_key import QueryKey

Stack = np.ndarray


def query_key(params: Mapping) -> QueryKey:
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
        return QueryKey(*(np.stack([np.asarray(x, np.float32) for x in part]) for part in zip(*parts, strict=True)))
    except (KeyError, TypeError, ValueError) as error:
        raise QkjaxError(f"the tree is not that of a ViT: {error}; give `params` as `qkjax.load` returns it") from error


def query_key_kernels(
    params: Mapping,
) -> tuple[Float[Stack, "layers embed heads head_dim"], Float[Stack, "layers embed heads head_dim"]]:
    """The query and key kernels of all layers, float32, for `decompose`."""
    return query_key(params)[:2]


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
