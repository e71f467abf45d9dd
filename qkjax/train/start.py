"""Initial parameters other than big_vision's random ones: mimetic kernels, or those of a checkpoint."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.train.config import TrainConfig
from qkjax.train.model import draw_plain
from qkjax.vit import posemb
from qkjax.vit.config import ViTConfig
from qkjax.vit.tree import (
    depth_of,
    map_attention,
    patch_bias,
    patch_kernel,
    position_embedding,
    with_patch_embedding,
    with_position_embedding,
    without_heads,
)
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.load import load

QUERY_KEY, VALUE_OUT = (0.7, 0.7), (0.4, -0.4)
"""alpha and beta in alpha Z + beta I (Trockman and Kolter 2023, arXiv 2305.09828)."""


def mimetic(key: jax.Array, tree: Mapping) -> dict:
    """A plain tree whose attention kernels have the structure of those of trained ViTs.

    Wq Wk^T of each head is the best approximation of rank head_dim to 0.7 Z + 0.7 I. Wv Wo of each layer is
    0.4 Z - 0.4 I. The entries of Z are drawn from N(0, 1 / D).

    Args:
      key: random key.
      tree: the plain tree of a ViT; its other parameters are unchanged.
    """
    # Random keys follow the layers' names in alphabetical order: 0, 1, 10, 11, 2, ...
    order = sorted(range(depth_of(tree)), key=str)

    def change(layer: int, attention: Mapping) -> Mapping:
        embed, heads, head_dim = attention["query"]["kernel"].shape
        heads_key, values_key = jax.random.split(jax.random.fold_in(key, order.index(layer)))
        query, key_ = _factors(jax.random.normal(heads_key, (heads, embed, embed)), head_dim, *QUERY_KEY)
        value, out = _factors(jax.random.normal(values_key, (1, embed, embed)), heads * head_dim, *VALUE_OUT)
        kernels = {
            "query": jnp.moveaxis(query, 0, 1),
            "key": jnp.moveaxis(key_, 0, 1),
            "value": value.reshape(embed, heads, head_dim),
            "out": out[0].T.reshape(heads, head_dim, embed),
        }
        return {**attention, **{part: {**attention[part], "kernel": kernel} for part, kernel in kernels.items()}}

    return map_attention(tree, change)


def _factors(
    z: Float[Array, "heads embed embed"], rank: int, alpha: float, beta: float
) -> tuple[Float[Array, "heads embed rank"], Float[Array, "heads embed rank"]]:
    """A and B such that A B^T is the best approximation of the given rank to alpha Z / sqrt(D) + beta I."""
    embed = z.shape[-1]
    u, s, vt = np.linalg.svd(alpha * np.asarray(z, np.float64) / np.sqrt(embed) + beta * np.eye(embed))
    root = np.sqrt(s[:, None, :rank])
    return jnp.asarray(u[..., :rank] * root, jnp.float32), jnp.asarray(vt[:, :rank].swapaxes(1, 2) * root, jnp.float32)


def starting_tree(config: TrainConfig, vit: ViTConfig) -> tuple[ViTConfig, dict | None]:
    """The ViT of a run and the plain tree that it starts from; None if all parameters are drawn at random.

    Args:
      config: the run.
      vit: the run's ViT from `vit_config`; a checkpoint adds its own parts, such as a class token.

    Raises:
      QkjaxError: the checkpoint cannot be read, or its shape differs from the run's.
    """
    if config.start:
        return _from_checkpoint(load(config.start), vit, config.seed)
    if config.init == "xavier":
        return vit, None
    tree_key, kernels_key = jax.random.split(jax.random.key(config.seed))
    return vit, mimetic(kernels_key, draw_plain(tree_key, vit))


def _from_checkpoint(checkpoint: Checkpoint, vit: ViTConfig, seed: int) -> tuple[ViTConfig, dict]:
    """The checkpoint's tree for the run's images, with a resampled position embedding and a new head."""
    own = checkpoint.config
    shape = ("width", "depth", "heads", "head_dim", "mlp_dim", "patch_size", "channels")
    if other := [name for name in shape if getattr(own, name) != getattr(vit, name)]:
        theirs, ours = (", ".join(f"{name} {getattr(c, name)}" for name in other) for c in (own, vit))
        raise QkjaxError(
            f"{checkpoint.name} has {theirs}, but the run has {ours}: give the run the checkpoint's values"
        )
    if own.relative_positions and own.grid != vit.grid:
        raise QkjaxError(
            f"{checkpoint.name} has relative position biases for {own.grid} patches, but the run has {vit.grid}: "
            "choose a resolution with the same grid"
        )
    pool = "gap" if own.pool in ("none", "0") else own.pool
    config = replace(own, grid=vit.grid, classes=vit.classes, rep_size=None, pool=pool, distilled=False)
    params = without_heads(checkpoint.params)
    if own.posemb == "learn":
        table = np.asarray(position_embedding(params), np.float32)
        params = with_position_embedding(params, posemb.resample(table, own.grid, config.grid, own.posemb_resample))
    return config, {**draw_plain(jax.random.key(seed), config), **_for_run_pixels(params, checkpoint)}


def _for_run_pixels(params: dict, checkpoint: Checkpoint) -> dict:
    """The tree with a patch embedding that takes images in -1..1 instead of images with the checkpoint's preprocessing.

    With z = 2 p - 1 and p in 0..1, (p - mean) / std = z / (2 std) + (1/2 - mean) / std, and the embedding is linear.
    """
    mean, std = (np.asarray(x, np.float32) for x in (checkpoint.preprocess.mean, checkpoint.preprocess.std))
    kernel = np.asarray(patch_kernel(params), np.float32)
    mean, std = mean[: kernel.shape[2]], std[: kernel.shape[2]]  # gray images have one channel
    shift = np.einsum("hwcd,c->d", kernel, (0.5 - mean) / std)
    bias = np.asarray(patch_bias(params)) + shift
    return with_patch_embedding(params, kernel=kernel / (2 * std)[None, None, :, None], bias=bias)
