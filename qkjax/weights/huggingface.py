"""Hugging Face names to big_vision's tree."""

from collections.abc import Mapping
from math import isqrt

import numpy as np
from flax.traverse_util import unflatten_dict

from qkjax.vit.config import ViTConfig
from qkjax.weights.names import BLOCK

ATTENTION = "MultiHeadDotProductAttention_0"
DINOV2_BLOCK = {
    "norm1.weight": "LayerNorm_0/scale",
    "norm1.bias": "LayerNorm_0/bias",
    "attention.attention.query": f"{ATTENTION}/query",
    "attention.attention.key": f"{ATTENTION}/key",
    "attention.attention.value": f"{ATTENTION}/value",
    "attention.output.dense": f"{ATTENTION}/out",
    "layer_scale1.lambda1": "LayerScale_0/scale",
    "norm2.weight": "LayerNorm_1/scale",
    "norm2.bias": "LayerNorm_1/bias",
    "mlp.fc1": "MlpBlock_0/Dense_0",
    "mlp.fc2": "MlpBlock_0/Dense_1",
    "layer_scale2.lambda1": "LayerScale_1/scale",
}


def dinov2_to_params(state: Mapping[str, np.ndarray], heads: int) -> tuple[ViTConfig, dict]:
    """A DINOv2 state dict (transformers' `Dinov2Model`) as a big_vision tree.

    Kernels are transposed to (in, out) and split into heads; the class row of the position
    embedding is added to the class token, which is the same function.

    Args:
      state: Hugging Face name -> array, linear weights (out, in).
      heads: attention heads of a layer.

    Raises:
      KeyError: a parameter is missing.
    """
    patch = state["embeddings.patch_embeddings.projection.weight"]
    width, channels, *patch_size = patch.shape
    positions = state["embeddings.position_embeddings"]
    side = isqrt(positions.shape[1] - 1)
    flat = {
        "embedding/kernel": patch.transpose(2, 3, 1, 0),
        "embedding/bias": state["embeddings.patch_embeddings.projection.bias"],
        "cls": state["embeddings.cls_token"] + positions[:, :1],
        "pos_embedding": positions[:, 1:],
        "Transformer/encoder_norm/scale": state["layernorm.weight"],
        "Transformer/encoder_norm/bias": state["layernorm.bias"],
    }
    depth = len({n.split(".")[2] for n in state if n.startswith("encoder.layer.")})
    for layer in range(depth):
        for theirs, ours in DINOV2_BLOCK.items():
            source, target = f"encoder.layer.{layer}.{theirs}", f"{BLOCK}_{layer}/{ours}"
            if source in state:
                flat[target] = state[source]
            else:
                flat[f"{target}/kernel"] = split_heads(state[f"{source}.weight"].T, ours, heads)
                flat[f"{target}/bias"] = split_heads(state[f"{source}.bias"], ours, heads)
    config = ViTConfig(
        width=width, depth=depth, heads=heads, head_dim=width // heads,
        mlp_dim=state["encoder.layer.0.mlp.fc1.bias"].shape[0], patch_size=tuple(patch_size), channels=channels,
        grid=(side, side), posemb_resample="bicubic", pool="tok", layer_scale=True, gelu="exact",
    )  # fmt: skip
    return config, unflatten_dict({n: np.ascontiguousarray(a, np.float32) for n, a in flat.items()}, sep="/")


def split_heads(array: np.ndarray, name: str, heads: int) -> np.ndarray:
    """Gives query, key, value (D, D) -> (D, heads, d), out (D, D) -> (heads, d, D), and their biases."""
    if name.endswith("/out"):
        return array.reshape(heads, -1, array.shape[-1]) if array.ndim == 2 else array
    if ATTENTION in name:
        return array.reshape(*array.shape[:-1], heads, -1)
    return array
