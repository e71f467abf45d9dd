"""Initial parameters other than big_vision's random initialisation: mimetic kernels, or a checkpoint's parameters."""

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
from qkjax.weights.checkpoint import Checkpoint, digest_of_parameters
from qkjax.weights.load import load

QUERY_KEY, VALUE_OUT = (0.7, 0.7), (0.4, -0.4)
"""Values of (alpha, beta) in alpha Z + beta I, for queries and keys and for values and outputs (Trockman and Kolter
2023, arXiv 2305.09828)."""


def mimetic(key: jax.Array, tree: Mapping) -> dict:
    """Returns a copy of a parameter tree whose attention kernels imitate the structure of trained ViTs' kernels.

    The product Wq Wk^T of each head is the best approximation of rank head_dim to 0.7 Z + 0.7 I. The product Wv Wo of
    each layer is 0.4 Z - 0.4 I. The entries of Z are drawn from N(0, 1 / D).

    Args:
      key: random key.
      tree: the plain parameter tree of a ViT. Biases, and parameters outside of attention, do not change.
    """
    # Random keys are assigned to layers in the alphabetical order of their names: 0, 1, 10, 11, 2, ...
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
    """Factors A and B for which A B^T is the best approximation, with the given rank, of alpha Z / sqrt(D) + beta I."""
    embed = z.shape[-1]
    u, s, vt = np.linalg.svd(alpha * np.asarray(z, np.float64) / np.sqrt(embed) + beta * np.eye(embed))
    root = np.sqrt(s[:, None, :rank])
    return jnp.asarray(u[..., :rank] * root, jnp.float32), jnp.asarray(vt[:, :rank].swapaxes(1, 2) * root, jnp.float32)


def starting_tree(config: TrainConfig, vit: ViTConfig) -> tuple[ViTConfig, dict | None]:
    """The architecture of a run, and the plain parameter tree from which training starts.

    The tree is None if all parameters are drawn at random.

    Args:
      config: configuration of the run.
      vit: architecture from `vit_config`. If training starts from a checkpoint, the returned architecture also has
        parts of the checkpoint's architecture, such as a class token.

    Raises:
      QkjaxError: the checkpoint cannot be read, or its shape differs from the shape of the run.
    """
    if config.start:
        return _from_checkpoint(load(config.start), vit, config.seed)
    if config.init == "xavier":
        return vit, None
    tree_key, kernels_key = jax.random.split(jax.random.key(config.seed))
    return vit, mimetic(kernels_key, draw_plain(tree_key, vit))


def start_digest(config: TrainConfig) -> str:
    """A hash of the parameters from which a run starts; "" if they are drawn at random.

    Raises:
      QkjaxError: the checkpoint cannot be read.
    """
    return digest_of_parameters(load(config.start).params) if config.start else ""


def _from_checkpoint(checkpoint: Checkpoint, vit: ViTConfig, seed: int) -> tuple[ViTConfig, dict]:
    """The checkpoint's architecture and parameter tree, adapted to the images and classes of the run.

    The position embedding is resampled, and the classifier is new.
    """
    own = checkpoint.config
    shape = ("width", "depth", "heads", "head_dim", "mlp_dim", "patch_size", "channels")
    if other := [name for name in shape if getattr(own, name) != getattr(vit, name)]:
        theirs, ours = (", ".join(f"{name} {getattr(c, name)}" for name in other) for c in (own, vit))
        raise QkjaxError(
            f"{checkpoint.name} has {theirs}, but the run has {ours}: set the values of the run to those of the "
            "checkpoint"
        )
    if own.relative_positions and own.grid != vit.grid:
        raise QkjaxError(
            f"{checkpoint.name} has relative position biases for {own.grid} patches, but the run has {vit.grid}: "
            "choose a resolution with the same grid"
        )
    pool = "gap" if own.pool in ("none", "0") else own.pool
    config = replace(own, grid=vit.grid, classes=vit.classes, rep_size=None, pool=pool, distilled=False)
    params = without_heads(checkpoint.params)
    if own.posemb == "learn":  # rotary positions need no change: their angles follow from the grid
        table = np.asarray(position_embedding(params), np.float32)
        params = with_position_embedding(params, posemb.resample(table, own.grid, config.grid, own.posemb_resample))
    return config, {**draw_plain(jax.random.key(seed), config), **_for_run_pixels(params, checkpoint)}


def _for_run_pixels(params: dict, checkpoint: Checkpoint) -> dict:
    """Changes the patch embedding to accept pixels from -1 to 1 instead of pixels normalised for the checkpoint.

    The change is exact, because the patch embedding is linear. If z = 2 p - 1 for pixels p from 0 to 1, then (p - mean)
    / std = z / (2 std) + (1/2 - mean) / std.
    """
    mean, std = (np.asarray(x, np.float32) for x in (checkpoint.preprocess.mean, checkpoint.preprocess.std))
    kernel = np.asarray(patch_kernel(params), np.float32)
    mean, std = mean[: kernel.shape[2]], std[: kernel.shape[2]]  # grey images have one channel
    shift = np.einsum("hwcd,c->d", kernel, (0.5 - mean) / std)
    bias = np.asarray(patch_bias(params)) + shift
    return with_patch_embedding(params, kernel=kernel / (2 * std)[None, None, :, None], bias=bias)
