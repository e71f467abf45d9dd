"""A ViT of two layers: its parameters, and its forward pass in float64 numpy, which shares no code with qkjax."""

import math
import re
from collections.abc import Mapping

import numpy as np

WIDTH, HEADS, PATCH, SIDE = 16, 2, 8, 32
BLOCK = "encoder.layer.{}."
PARTS = {"attention.attention.query": "query", "attention.attention.key": "key", "attention.attention.value": "value",
         "attention.output.dense": "out", "intermediate.dense": "up", "output.dense": "down"}  # fmt: skip
CONFIG = {"model_type": "vit", "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
          "image_size": SIDE, "patch_size": PATCH, "intermediate_size": WIDTH, "hidden_act": "gelu",
          "layer_norm_eps": 1e-6, "qkv_bias": True, "num_channels": 3}  # fmt: skip
PREPROCESSOR = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
                "resample": 2, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
                "do_rescale": True, "rescale_factor": 1 / 255}  # fmt: skip
POSITIONS = "embeddings.position_embeddings"
Arrays = Mapping[str, np.ndarray]


def hub_arrays() -> dict[str, np.ndarray]:
    """Parameters with the names and the layout of transformers."""
    shapes = {"embeddings.cls_token": (1, 1, WIDTH), "embeddings.position_embeddings": (1, 17, WIDTH),
              "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
              "embeddings.patch_embeddings.projection.bias": (WIDTH,),
              "layernorm.weight": (WIDTH,), "layernorm.bias": (WIDTH,)}  # fmt: skip
    for block in map(BLOCK.format, range(2)):
        for part in PARTS:
            shapes |= {f"{block}{part}.weight": (WIDTH, WIDTH), f"{block}{part}.bias": (WIDTH,)}
        for norm in ("before", "after"):
            shapes |= {f"{block}layernorm_{norm}.weight": (WIDTH,), f"{block}layernorm_{norm}.bias": (WIDTH,)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


BIG_VISION = {"embeddings.cls_token": "cls", "embeddings.position_embeddings": "pos_embedding",
              "embeddings.patch_embeddings.projection.weight": "embedding/kernel",
              "embeddings.patch_embeddings.projection.bias": "embedding/bias",
              "layernorm.weight": "Transformer/encoder_norm/scale",
              "layernorm.bias": "Transformer/encoder_norm/bias"}  # fmt: skip
_IN_BLOCK = {"query": "MultiHeadDotProductAttention_0/query", "key": "MultiHeadDotProductAttention_0/key",
             "value": "MultiHeadDotProductAttention_0/value", "out": "MultiHeadDotProductAttention_0/out",
             "up": "MlpBlock_0/Dense_0", "down": "MlpBlock_0/Dense_1"}  # fmt: skip
for _layer in range(2):
    _block, _ours = BLOCK.format(_layer), f"Transformer/encoderblock_{_layer}/"
    for _part, _short in PARTS.items():
        BIG_VISION[f"{_block}{_part}.weight"] = f"{_ours}{_IN_BLOCK[_short]}/kernel"
        BIG_VISION[f"{_block}{_part}.bias"] = f"{_ours}{_IN_BLOCK[_short]}/bias"
    for _norm, _number in (("before", 0), ("after", 1)):
        BIG_VISION[f"{_block}layernorm_{_norm}.weight"] = f"{_ours}LayerNorm_{_number}/scale"
        BIG_VISION[f"{_block}layernorm_{_norm}.bias"] = f"{_ours}LayerNorm_{_number}/bias"


def big_vision_arrays() -> dict[str, np.ndarray]:
    """The same parameters with the names and the layout of big_vision."""
    return {BIG_VISION[name]: _to_big_vision(name, array) for name, array in hub_arrays().items()}


def _to_big_vision(name: str, array: np.ndarray) -> np.ndarray:
    if "projection.weight" in name:
        return array.transpose(2, 3, 1, 0)
    if re.search(r"attention\.(query|key|value)", name):
        return array.T.reshape(-1, HEADS, WIDTH // HEADS)[0 if name.endswith("bias") else slice(None)]
    if name.endswith("attention.output.dense.weight"):
        return array.T.reshape(HEADS, WIDTH // HEADS, WIDTH)
    return array.T if array.ndim == 2 else array


def from_big_vision(arrays: Arrays) -> dict[str, np.ndarray]:
    """Parameters of big_vision in the layout of transformers, for `tokens`."""
    hub = {}
    for name, own in BIG_VISION.items():
        if own not in arrays:
            continue
        array = np.asarray(arrays[own], np.float64)
        if "projection.weight" in name:
            array = array.transpose(3, 2, 0, 1)
        elif name.endswith("attention.output.dense.weight"):
            array = array.reshape(-1, array.shape[-1]).T
        elif re.search(r"attention\.(query|key|value)", name):
            array = array.reshape(-1) if name.endswith("bias") else array.reshape(array.shape[0], -1).T
        elif array.ndim == 2:
            array = array.T
        hub[name] = array
    return hub


def sine_positions() -> np.ndarray:
    """Position embeddings (1, 17, D) of big_vision models without parameters for them; 0 for the class token."""
    y, x = (axis.reshape(-1, 1) for axis in np.mgrid[: SIDE // PATCH, : SIDE // PATCH])
    rates = 1 / 10000 ** (np.arange(WIDTH // 4) / (WIDTH // 4 - 1))
    waves = [wave(axis * rates) for axis in (x, y) for wave in (np.sin, np.cos)]
    return np.concatenate([np.zeros((1, WIDTH)), np.concatenate(waves, 1)])[None]


def images() -> np.ndarray:
    """Two images (2, 32, 32, 3)."""
    return np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


_erf = np.vectorize(math.erf)
ACTIVATIONS = {"gelu": lambda x: x * (1 + _erf(x / math.sqrt(2)).astype(x.dtype)) / 2,
               "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
               "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
               "relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x))}  # fmt: skip


def tokens(arrays: Arrays, heads: int, eps: float, activation: str, dtype: str = "f8") -> np.ndarray:
    """The tokens after the last LayerNorm (2, 17, D), from arrays in the layout of transformers."""
    p = {name: np.asarray(array).astype(dtype) for name, array in arrays.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    kernel = p["embeddings.patch_embeddings.projection.weight"]
    size, number = kernel.shape[2], SIDE // kernel.shape[2]
    patches = images().astype(dtype).reshape(2, number, size, number, size, 3).transpose(0, 1, 3, 5, 2, 4)
    x = patches.reshape(2, number**2, -1) @ kernel.reshape(len(kernel), -1).T
    x = x + p["embeddings.patch_embeddings.projection.bias"]
    if "embeddings.cls_token" in p:
        x = np.concatenate([np.broadcast_to(p["embeddings.cls_token"].reshape(1, 1, -1), (2, 1, x.shape[-1])), x], 1)
    x = x + p["embeddings.position_embeddings"]
    for block in map(BLOCK.format, range(2)):
        y = norm(x, f"{block}layernorm_before")
        q, k, v = (
            dense(y, f"{block}attention.attention.{part}").reshape(2, x.shape[1], heads, -1).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(2, x.shape[1], -1)
        x = x + dense(mixed, f"{block}attention.output.dense")
        y = ACTIVATIONS[activation](dense(norm(x, f"{block}layernorm_after"), f"{block}intermediate.dense"))
        x = x + dense(y, f"{block}output.dense")
    assert x.dtype == dtype
    return norm(x, "layernorm")
