"""Where a run starts from, other than freshly drawn as big_vision does: mimetic kernels, or a checkpoint."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.train.config import TrainConfig
from qkjax.train.model import ATTENTION, drawn
from qkjax.vit import posemb
from qkjax.vit.config import ViTConfig
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.load import load

QUERY_KEY, VALUE_OUT = (0.7, 0.7), (0.4, -0.4)
"""alpha and beta of alpha Z + beta I; Trockman and Kolter 2023 (arXiv 2305.09828)."""


def mimetic(key: jax.Array, tree: dict) -> dict:
    """A plain tree whose attention starts as that of trained ViTs looks.

    Per head Wq Wk^T is the best approximation of rank head_dim to 0.7 Z + 0.7 I, per layer Wv Wo is
    0.4 Z - 0.4 I, with the entries of Z drawn from N(0, 1 / D).

    Args:
      tree: the plain tree of a ViT, of which all else is kept.
    """
    blocks = dict(tree["Transformer"])
    for layer, name in enumerate(n for n in sorted(blocks) if n.startswith("encoderblock_")):
        attention = blocks[name][ATTENTION]
        embed, heads, head_dim = attention["query"]["kernel"].shape
        of_heads, of_values = jax.random.split(jax.random.fold_in(key, layer))
        query, key_ = _factors(jax.random.normal(of_heads, (heads, embed, embed)), head_dim, *QUERY_KEY)
        value, out = _factors(jax.random.normal(of_values, (1, embed, embed)), heads * head_dim, *VALUE_OUT)
        kernels = {
            "query": jnp.moveaxis(query, 0, 1),
            "key": jnp.moveaxis(key_, 0, 1),
            "value": value.reshape(embed, heads, head_dim),
            "out": out[0].T.reshape(heads, head_dim, embed),
        }
        parts = {part: {**attention[part], "kernel": kernel} for part, kernel in kernels.items()}
        blocks[name] = {**blocks[name], ATTENTION: {**attention, **parts}}
    return {**tree, "Transformer": blocks}


def _factors(
    z: Float[Array, "heads embed embed"], rank: int, alpha: float, beta: float
) -> tuple[Float[Array, "heads embed rank"], Float[Array, "heads embed rank"]]:
    """A and B with A B^T the best approximation of a rank to alpha Z / sqrt(D) + beta I."""
    embed = z.shape[-1]
    u, s, vt = np.linalg.svd(alpha * np.asarray(z, np.float64) / np.sqrt(embed) + beta * np.eye(embed))
    root = np.sqrt(s[:, None, :rank])
    return jnp.asarray(u[..., :rank] * root, jnp.float32), jnp.asarray(vt[:, :rank].swapaxes(1, 2) * root, jnp.float32)


def starting_tree(config: TrainConfig, vit: ViTConfig) -> tuple[ViTConfig, dict | None]:
    """The ViT of a run and the plain tree that it starts from; None where all is drawn.

    Args:
      vit: of the run, as its values say; a checkpoint's has parts of its own besides, such as a class token.

    Raises:
      QkjaxError: the checkpoint cannot be read, or its shape is not the run's.
    """
    if config.start:
        return _from_checkpoint(load(config.start), vit, config.seed)
    if config.init == "xavier":
        return vit, None
    of_tree, of_kernels = jax.random.split(jax.random.key(config.seed))
    return vit, mimetic(of_kernels, drawn(of_tree, vit))


def _from_checkpoint(checkpoint: Checkpoint, vit: ViTConfig, seed: int) -> tuple[ViTConfig, dict]:
    """The checkpoint's tree on the run's images: position embedding brought to its grid, a fresh head."""
    found = checkpoint.config
    shape = ("width", "depth", "heads", "head_dim", "mlp_dim", "patch_size", "channels")
    if other := [f"{name} {getattr(found, name)}" for name in shape if getattr(found, name) != getattr(vit, name)]:
        raise QkjaxError(f"{checkpoint.name} has {', '.join(other)}, and this run has not: give it the same shape")
    if found.relative_positions and found.grid != vit.grid:
        raise QkjaxError(f"{checkpoint.name} has relative position biases for {found.grid} patches, the run {vit.grid}")
    pool = "gap" if found.pool in ("none", "0") else found.pool
    config = replace(found, grid=vit.grid, classes=vit.classes, rep_size=None, pool=pool, distilled=False)
    params = {name: part for name, part in checkpoint.params.items() if name not in ("head", "head_dist", "pre_logits")}
    if found.posemb == "learn":
        table = np.asarray(params["pos_embedding"], np.float32)
        params["pos_embedding"] = posemb.resample(table, found.grid, config.grid, found.posemb_resample)
    params["embedding"] = _for_run_pixels(params["embedding"], checkpoint)
    return config, {**drawn(jax.random.key(seed), config), **params}


def _for_run_pixels(embedding: dict, checkpoint: Checkpoint) -> dict:
    """The patch embedding for images in -1..1 instead of as the checkpoint's are prepared.

    With z = 2 p - 1 and p in 0..1, (p - mean) / std = z / (2 std) + (1/2 - mean) / std, and the embedding is linear.
    """
    mean, std = (np.asarray(x, np.float32) for x in (checkpoint.preprocess.mean, checkpoint.preprocess.std))
    kernel = np.asarray(embedding["kernel"], np.float32)
    mean, std = mean[: kernel.shape[2]], std[: kernel.shape[2]]  # one for gray images
    shift = np.einsum("hwcd,c->d", kernel, (0.5 - mean) / std)
    return {"kernel": kernel / (2 * std)[None, None, :, None], "bias": np.asarray(embedding["bias"]) + shift}
