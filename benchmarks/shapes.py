"""Shapes of common vision transformers, and models with random weights in these shapes.

Speed and memory do not depend on the weights, so no checkpoint has to be downloaded.
"""

import jax
import jax.numpy as jnp
import numpy as np

import qkjax
from qkjax.images.preprocess import PRESETS
from qkjax.weights.checkpoint import Checkpoint

SIDE = 224
"""Height and width of the images in pixels."""
SHAPES = {
    "S": (12, 384, 6, 64, 14),
    "B": (12, 768, 12, 64, 16),
    "L": (24, 1024, 16, 64, 16),
    "H": (32, 1280, 16, 80, 14),
    "g": (40, 1536, 24, 64, 14),
}
"""Layers, embed, heads, head_dim and patch size of ViT-S/14, B/16, L/16, H/14 and g/14."""
TINY = (2, 32, 2, 16, 56)
"""The shape that `--tiny` uses in place of every other shape."""


def shape_of(model: str, tiny: bool = False) -> tuple[int, int, int, int, int]:
    """Layers, embed, heads, head_dim and patch size."""
    return TINY if tiny else SHAPES[model]


def config_of(model: str, tiny: bool = False) -> qkjax.ViTConfig:
    """The architecture: a class token, a MLP of four times the width, and no classifier."""
    depth, width, heads, head_dim, patch = shape_of(model, tiny)
    return qkjax.ViTConfig(
        width=width,
        depth=depth,
        heads=heads,
        head_dim=head_dim,
        mlp_dim=4 * width,
        patch_size=(patch, patch),
        grid=(SIDE // patch, SIDE // patch),
        pool="tok",
        class_token=True,
    )


def params_of(config: qkjax.ViTConfig) -> dict:
    """Random parameters of an architecture, on the device."""
    return jax.jit(qkjax.ViT(config).init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]


def checkpoint_of(model: str, tiny: bool = False) -> Checkpoint:
    """A checkpoint with random weights, with DINOv2's preprocessing."""
    config = config_of(model, tiny)
    return Checkpoint(f"random ViT-{model}", config, jax.device_get(params_of(config)), "", PRESETS["hf-dinov2"])


def kernels_of(model: str, tiny: bool = False, condition: float | None = None) -> np.ndarray:
    """Random query and key kernels, (2, layers, embed, heads, head_dim), of a given condition number."""
    layers, embed, heads, head_dim, _ = shape_of(model, tiny)
    kernels = np.random.default_rng(0).standard_normal((2, layers, embed, heads, head_dim), dtype=np.float32)
    return kernels * np.geomspace(1, 1 / condition, head_dim, dtype=np.float32) if condition else kernels


def pixels_of(batch: int) -> np.ndarray:
    """A batch of random decoded images, uint8."""
    return np.random.default_rng(1).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)


def forward_products(config: qkjax.ViTConfig) -> float:
    """Multiply-adds of the matrix products of the forward pass of one image."""
    patches = (SIDE // config.patch_size[0]) * (SIDE // config.patch_size[1])
    tokens = patches + config.prefix_tokens
    layer = tokens * (4 * config.width**2 + 2 * config.width * config.mlp_dim + 2 * tokens * config.width)
    embedding = patches * config.patch_size[0] * config.patch_size[1] * config.channels * config.width
    return float(config.depth * layer + embedding)


def projection_products(config: qkjax.ViTConfig) -> float:
    """Multiply-adds of the projections of one image's patches onto all query and key directions."""
    patches = (SIDE // config.patch_size[0]) * (SIDE // config.patch_size[1])
    return 2.0 * config.depth * patches * config.width * config.heads * config.head_dim


def decomposition_products(model: str, tiny: bool = False) -> float:
    """Multiply-adds that no decomposition avoids: two Gram-sized products per kernel, see `benchmarks/decompose.py`."""
    layers, embed, heads, head_dim, _ = shape_of(model, tiny)
    return 4.0 * layers * heads * embed * head_dim**2
