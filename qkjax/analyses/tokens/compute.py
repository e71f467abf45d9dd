"""Measures, over images, the map correlation of modes and the parts of position and content in the attention logits.

The analysis runs two passes: the parts of an image need the position factor, which is a mean over all images. Letters:
L layers, H heads, N tokens, D embed.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from qkjax.activations.position_content import logit_parts
from qkjax.activations.token_moments import (
    HALVES,
    TokenMoments,
    TokenStatistics,
    batch_moments,
    empty_moments,
    merge_moments,
    statistics_of,
)
from qkjax.analyses.decomposition import decompose, frame_attrs, query_key
from qkjax.analyses.tokens.photographs import photograph_indices
from qkjax.analyses.tokens.tables import tokens_dataset
from qkjax.analyses.usable import require_finite, require_readable
from qkjax.errors import QkjaxError
from qkjax.images.default_set import photographs
from qkjax.images.sets import Batch, ImageSet
from qkjax.interaction.rotary.rotation import rotate
from qkjax.passes.engine import PassResult, Rows, batch_groups, run_pass
from qkjax.passes.inputs import (
    batches_of_photographs,
    for_photographs,
    normalised_pixels,
    photograph_grid,
    scaling,
    whole_grid,
)
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.settings import settings_of
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.vit.rotary import token_angles
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint


class Means(NamedTuple):
    """Means over images of queries and keys at each place, with biases and after any rotation; special tokens first."""

    query: Float[Array | np.ndarray, "L N H d"]
    key: Float[Array | np.ndarray, "L N H d"]


@partial(jax.jit, static_argnames="model")
def _moments_step(model: ViT, params, scaling, pixels, weights) -> tuple[Array, Array]:
    """Place means and scatter of all layers for a batch; see `batch_moments`."""
    _, out = model.apply({"params": params}, normalised_pixels(pixels, scaling), capture=("norm",))
    parts = [batch_moments(tokens, weights, model.config.prefix_tokens) for tokens in layer_outputs(out, "norm")]
    means, scatters = zip(*parts, strict=True)
    return jnp.stack(means), jnp.stack(scatters)


@partial(jax.jit, static_argnames="model")
def _parts_step(model: ViT, params, scaling, means: Means, pixels) -> Float[Array, "B L H kinds 3 2"]:
    """The parts of the logits of each image: between patches, and between all tokens if there are special tokens."""
    names = ("rotated_query", "rotated_key")
    _, out = model.apply({"params": params}, normalised_pixels(pixels, scaling), capture=names)
    special, layers = model.config.prefix_tokens, []
    for layer, (query, key) in enumerate(zip(*(layer_outputs(out, name) for name in names), strict=True)):
        tokens = query, key, means.query[layer][None], means.key[layer][None]
        kinds = [
            logit_parts(*(x[:, first:] for x in tokens[:2]), *(x[0, first:] for x in tokens[2:]))
            for first in dict.fromkeys((special, 0))
        ]
        layers.append(jnp.stack(kinds, axis=2))
    return jnp.stack(layers, axis=1)


def token_statistics(
    checkpoint: Checkpoint,
    images: ImageSet | None = None,
    *,
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures what the modes meet in the tokens of images, and whether logits come from position or from content.

    The map correlation of a mode is the correlation of its query map and its key map over the patches of all images:
    the cosine of the mode in the metric of the tokens' covariance. It is computed for whole tokens, and for their
    content and their position factor alone. The variance of the logits of each image is split into parts of position
    and content, which add up exactly. See `qkjax.interaction.map_correlation` and
    `qkjax.activations.position_content`. With rotary positions, the modes are those of the mean over places, tokens
    are projected without rotation, and the parts are those of the rotated queries and keys.

    The analysis passes over the images twice. Interrupted passes resume from the file `partial` and a second file
    in the same folder, which the function removes.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      images: an image set; by default `qkjax.images.photographs()`.
      options: batch size, resolution and floating-point format. `shard` is not supported, since the second pass needs
        the result of the first pass over all images.
      partial: file in which the first pass saves its progress; the caller removes the file. If None, progress is not
        saved.
      fresh: whether to discard the progress in `partial`, whatever its settings.

    Returns:
      A dataset with dimensions layer, head, mode, image and the parts of tokens; see `tokens_dataset`.

    Raises:
      QkjaxError: no image can be read, the model does not support the resolution or has relative position biases,
        `shard` is given, or `partial` has different settings.

    Example:
      >>> import qkjax
      >>> few, _ = qkjax.images.photographs().spread(4)
      >>> result = qkjax.token_statistics(qkjax.load("dinov2-vits14-focus"), few)
      >>> result.map_correlation.dims
      ('part', 'layer', 'head', 'mode')
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    second = partial and partial.with_name(f"{partial.name.removesuffix('.npz')}.second.npz")
    checkpoint = for_photographs(checkpoint)
    check_supported(checkpoint, options)
    for path in (partial, second) if fresh else ():
        if path:
            remove(path)
    images = photographs() if images is None else images
    modes, settings = decompose(checkpoint), settings_of(checkpoint, images, options)
    special, groups = checkpoint.config.prefix_tokens, batch_groups(len(images), batch_size(options.batch, len(images)))
    moments, first = _first_pass(checkpoint, images, options, groups, partial, settings)
    require_readable(first.unreadable, images, partial)
    require_finite({"tokens": moments.scatter}, images.name, partial)
    statistics = statistics_of(moments, special)
    step = _parts_on_devices(checkpoint, options, _place_means(checkpoint, statistics, options))
    batches = batches_of_photographs(checkpoint, images, options)
    rows = run_pass(step, (), groups, batches, second, settings | {"pass": "second"}).rows
    require_finite({"logits": rows["parts"]}, images.name, second)
    names = [images.names[i] for i in rows["index"]]
    left_out = [*images.left_out, *((images.names[i], reason) for i, reason in first.unreadable)]
    both_frames = modes, decompose(checkpoint, fold_scale=True)
    attrs = {"model": checkpoint.name, "images": images.name, "settings": json.dumps(settings), **frame_attrs(modes)}
    dataset = tokens_dataset(both_frames, statistics, rows["parts"], names, left_out, attrs)
    if second:
        remove(second)
    return dataset


def check_supported(checkpoint: Checkpoint, options: PassOptions) -> None:
    """Checks that the analysis supports a checkpoint and the options, before any computation.

    Raises:
      QkjaxError: see `token_statistics`.
    """
    whole_grid(checkpoint, options.resolution, "the variance of the logits is over all pairs of patches")
    if checkpoint.config.relative_positions:
        raise QkjaxError(
            f"{checkpoint.name} has relative position biases, which are added to its logits and are neither position "
            "nor content of tokens: expected a model without them"
        )
    if options.shard is not None:
        raise QkjaxError(
            f"shard={options.shard[0]}/{options.shard[1]}: the second pass over the images needs the result of the "
            "first pass over all images; remove shard=..."
        )


def _first_pass(
    checkpoint: Checkpoint, images: ImageSet, options: PassOptions, groups, path: Path | None, settings
) -> tuple[TokenMoments, PassResult]:
    """The moments of the tokens of all images."""
    special, split, whole = checkpoint.config.prefix_tokens, over_devices(0), over_devices(None)
    on_device = jax.device_put((checkpoint.params, scaling(checkpoint.preprocess)), whole)
    model, half = ViT(checkpoint.config, options.dtype), photograph_indices(images.names) % HALVES
    tokens = special + int(np.prod(photograph_grid(checkpoint, options.resolution)))

    def step(state: TokenMoments, batch: Batch) -> tuple[TokenMoments, Rows]:
        weights = ((half[batch.index] == np.arange(HALVES)[:, None]) & (batch.index >= 0)).astype(np.float32)
        pixels, sharded = jax.device_put(batch.pixels, split), jax.device_put(weights, over_devices(1))
        means, scatters = jax.device_get(_moments_step(model, *on_device, pixels, sharded))
        return merge_moments(state, TokenMoments(weights.sum(1), means, scatters), special), {}

    result = run_pass(
        step,
        empty_moments(checkpoint.config.depth, tokens, checkpoint.config.width),
        groups,
        batches_of_photographs(checkpoint, images, options),
        path,
        settings,
        merge=lambda states: _merged(states, special),
    )
    return TokenMoments(*result.state), result


def _merged(states: list[TokenMoments], special: int) -> TokenMoments:
    """The moments of the images of all hosts."""
    total = states[0]
    for other in states[1:]:
        total = merge_moments(total, other, special)
    return total


def _place_means(checkpoint: Checkpoint, statistics: TokenStatistics, options: PassOptions) -> Means:
    """The means of queries and keys over images, from the means of tokens: both are linear in the token."""
    parts = query_key(checkpoint.params)
    means = [
        np.einsum("lnd,ldhk->lnhk", statistics.place_mean, kernel) + bias[:, None]
        for kernel, bias in ((parts.query_kernel, parts.query_bias), (parts.key_kernel, parts.key_bias))
    ]
    if checkpoint.config.rotary is not None:
        grid = photograph_grid(checkpoint, options.resolution)
        angles = token_angles(checkpoint.config, checkpoint.params, grid)[:, None]
        means = [rotate(x, angles, checkpoint.config.rotary.pairs) for x in means]
    return Means(*(x.astype(np.float32) for x in means))


def _parts_on_devices(checkpoint: Checkpoint, options: PassOptions, means: Means):
    """Returns the step of the second pass, which computes one row per image."""
    split, whole = over_devices(0), over_devices(None)
    on_device = jax.device_put((checkpoint.params, scaling(checkpoint.preprocess), means), whole)
    model = ViT(checkpoint.config, options.dtype)

    def step(state: tuple, batch: Batch) -> tuple[tuple, Callable[[], Rows]]:
        present, result = batch.index >= 0, _parts_step(model, *on_device, jax.device_put(batch.pixels, split))
        return state, lambda: {"index": batch.index[present], "parts": jax.device_get(result)[present]}

    return step
