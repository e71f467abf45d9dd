"""Shares of the logits, and query and key maps, of a model with rotary positions on one image.

The modes are those of the mean over places (`qkjax.decompose(checkpoint)`). Their exact terms in the logits are
projections of rotated queries and keys; see `qkjax.interaction.rotary.exact`.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.activations.project import Maps
from qkjax.activations.rotary_contribution import RotaryContributions, rotary_contributions, within_windows
from qkjax.activations.rotary_maps import rotated_maps
from qkjax.analyses.decomposition import query_key
from qkjax.errors import QkjaxError
from qkjax.interaction.frame import Frame
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.exact import HeadMaps, head_maps
from qkjax.vit.model import ViT
from qkjax.vit.rotary import token_angles
from qkjax.vit.tree import layer_outputs
from qkjax.vit.windows import layer_windows
from qkjax.weights.checkpoint import Checkpoint

CAPTURED = ("norm", "query", "key", "attention_logits", "attention")


class RotaryHeads(NamedTuple):
    """The query and key parameters of a checkpoint, and the maps from its rotated queries and keys to given modes."""

    parts: QueryKey
    maps: HeadMaps


def rotary_heads(checkpoint: Checkpoint, modes: Modes) -> RotaryHeads:
    """Computes the maps from rotated queries and keys to modes of the mean over places, or of Wq Wk^T.

    Raises:
      QkjaxError: the modes are those of one offset, or are not the result of `decompose(checkpoint)` without
        `fold_scale`, `center` and `normalize`.
    """
    positions = modes.frame.positions
    if positions is None or modes.frame != Frame(positions=positions) or positions.kind == "offset":
        raise QkjaxError(
            f"modes are in the frame {modes.frame}: expected those of qkjax.decompose(checkpoint) or "
            'qkjax.decompose(checkpoint, positions="none"), because the model has rotary positions'
        )
    parts = query_key(checkpoint, positions.grid)
    angles = np.asarray(parts.rotation.angles)
    angles = angles if positions.kind == "mean" else np.zeros_like(angles)
    maps = head_maps(parts.query_kernel, parts.key_kernel, angles, replace(modes, frame=Frame()), parts.rotation.pairs)
    return RotaryHeads(parts, maps)


def maps_at_places(
    checkpoint: Checkpoint, tokens: Float[Array, "layers batch tokens embed"], modes: Modes, grid: tuple[int, int]
) -> Maps:
    """Query and key maps of tokens at their places in a grid of patches; see `rotated_maps`.

    Raises:
      QkjaxError: see `rotary_heads`.
    """
    parts, maps = rotary_heads(checkpoint, modes)
    angles = token_angles(checkpoint.config, checkpoint.params, grid)
    how = parts.rotation.pairs, checkpoint.config.prefix_tokens, grid
    return rotated_maps(tokens, parts[:2], (maps.query, maps.key), angles, *how)


def shares_at_places(
    checkpoint: Checkpoint, images: Float[np.ndarray, "batch height width 3"], modes: Modes, grid: tuple[int, int]
) -> tuple[RotaryContributions, Bool[Array, "layers"]]:
    """Shares of all terms in the logits of images, stacked over layers, and whether the layers' tokens are finite."""
    parts, maps = rotary_heads(checkpoint, modes)
    angles = token_angles(checkpoint.config, checkpoint.params, grid)
    model = ViT(checkpoint.config)
    arrays = parts.query_bias, parts.key_bias, maps, angles
    return _shares(model, checkpoint.params, images, *arrays, pairs=parts.rotation.pairs, grid=tuple(grid))


@partial(jax.jit, static_argnames=("model", "pairs", "grid"))
def _shares(model: ViT, params, images, query_bias, key_bias, maps: HeadMaps, angles, pairs, grid):
    _, out = model.apply({"params": params}, images, capture=CAPTURED)
    captured = list(zip(*(layer_outputs(out, name) for name in CAPTURED), strict=True))
    shares, windows = [], [layer_windows(model.config, grid, i) for i in range(model.config.depth)]
    angles = jnp.broadcast_to(angles, (model.config.depth, *angles.shape[-2:]))
    for i, (_, query, key, logits, attention) in enumerate(captured):
        of_layer = HeadMaps(*(x[i] for x in maps))
        biases = query_bias[i], key_bias[i]
        how = angles[i], of_layer, pairs, windows[i]
        shares.append(rotary_contributions(query, key, *biases, logits, attention, *how))
    finite = [
        jnp.isfinite(norm).all() & jnp.isfinite(within_windows(logits, window)).all()
        for (norm, _, _, logits, _), window in zip(captured, windows, strict=True)
    ]
    return RotaryContributions(*map(jnp.stack, zip(*shares, strict=True))), jnp.stack(finite)
