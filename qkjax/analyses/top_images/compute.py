"""Finds the images that excite each mode most, in one pass over an image set (the paper's figures 1, 4, S5 to S16)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from qkjax.activations.project import Stream, project
from qkjax.activations.scores import SCORES, both_signs
from qkjax.activations.top_maps import TopMaps, add, empty, merge
from qkjax.analyses.decomposition import decompose, frame_attrs, modes_per_head
from qkjax.analyses.top_images.tables import top_images_dataset
from qkjax.analyses.usable import require_finite, require_readable
from qkjax.errors import QkjaxError, nearest
from qkjax.images.default_set import photographs
from qkjax.images.sets import Batch, ImageSet
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes
from qkjax.passes.engine import Rows, batch_groups, run_pass
from qkjax.passes.inputs import (
    batches_of_photographs,
    for_photographs,
    normalised_pixels,
    photograph_grid,
    scaling,
)
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.partial_file import interrupted_settings
from qkjax.passes.settings import settings_of
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint, origin_of

MAPPED = 5
"""Number of modes of each head whose maps are stored by default."""
MAP_BYTES = 512 * 2**20
"""Largest number of bytes that the stored maps take by default. With many images per mode or many patches, maps of
fewer modes are stored."""


@partial(jax.jit, static_argnames=("model", "stream", "scores"), donate_argnames="state")
def _step(
    model: ViT, params, modes: Modes, scaling, state: TopMaps, pixels, index, stream: Stream, scores: tuple[str, ...]
):
    """Updates the top images of every mode, and their maps, with one batch. The old state's memory is reused (donated).

    The pixels cannot be donated, because no result has their shape. The second result is a number, on which the caller
    can wait even after the next step has reused the first result's memory.
    """
    images = normalised_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=(stream,))
    values, first = [], []
    for layer, tokens in enumerate(layer_outputs(out, stream)):
        maps = project(tokens[:, model.config.prefix_tokens :], modes.u[layer], modes.v[layer])
        values.append(jnp.stack([both_signs(name, maps[:, :, 0], maps[:, :, 1]) for name in scores], axis=1))
        first.append(jnp.einsum("bpwhm->hmbwp", maps[..., : state.maps.shape[2]]))
    state = add(state, jnp.stack(values, axis=2), index, jnp.stack(first))
    return state, state.top.image.max()


def top_images(
    checkpoint: Checkpoint,
    images: ImageSet | None = None,
    *,
    top: int = 9,
    scores: tuple[str, ...] = ("product",),
    stream: Stream = "norm",
    maps: int | None = None,
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Finds the images that excite each mode most, for both signs of a mode, and the maps of the first modes.

    For a model with rotary positions, the modes are those of the mean over places, and the maps are the projections of
    tokens without rotation, so that an image scores by its content and not by the places of its patches.

    An interrupted pass resumes from the file `partial`. Several hosts can divide the images of a pass among themselves.
    Independent processes can also divide the images; see the attribute `shard` of `PassOptions`.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      images: the image set, for example from `open_images`; by default the photographs of scikit-image and
        scikit-learn, and crops of these photographs.
      top: number of images per mode, sign and score; at most the number of images in the set.
      scores: names of scores in `qkjax.activations.scores.SCORES`.
      stream: the tokens to project; see `qkjax.activations.project.Stream`.
      maps: number of modes of each head, strongest first, whose query and key maps are stored, for the top images of
        the first score. Drawing other modes takes a second pass over their images. None means 5 modes, or fewer if the
        maps of 5 modes would take more than 512 MB.
      options: batch size, resolution, floating-point format and share.
      partial: file in which the pass saves its progress; the caller removes the file. If None, progress is not saved.
      fresh: whether to discard the progress in `partial`, whatever its settings.

    Returns:
      A dataset with dimensions score, layer, head, mode, sign, place and image; see `top_images_dataset`.

    Raises:
      QkjaxError: a score is unknown, `top` is below 1, `maps` is below 0, no image is readable, the model does not
        support the resolution, or `partial` has different settings.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> few, _ = qkjax.images.photographs().spread(4)
      >>> result = qkjax.top_images(checkpoint, few, top=2)
      >>> result.image_index.dims
      ('score', 'layer', 'head', 'mode', 'sign', 'place')
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    if fresh and partial:
        remove(partial)
    checkpoint = for_photographs(checkpoint)
    grid = check(checkpoint, top, scores, options)
    images = photographs() if images is None else images
    settings = scan_settings(checkpoint, images, top, scores, stream, options)
    modes = decompose(checkpoint)
    layers, heads, _, rank = modes.u.shape
    places = min(top, len(images))
    mapped = mapped_modes(maps, (layers, heads, rank), places, grid)
    result = run_pass(
        scan_step(checkpoint, modes, stream, tuple(scores), options),
        empty((len(scores), layers, heads, rank), places, mapped, grid[0] * grid[1]),
        batch_groups(len(images), batch_size(options.batch)),
        batches_of_photographs(checkpoint, images, options),
        partial,
        {**settings, "maps": str(mapped)},
        merge=merge,
        shard=options.shard,
    )
    require_readable(result.unreadable, images, partial)
    unreadable = [(images.names[index], reason) for index, reason in result.unreadable]
    attrs = {**origin_of(checkpoint), "images": images.name, "settings": json.dumps(settings), **frame_attrs(modes)}
    best = jax.tree.map(np.asarray, result.state)
    if not (best.top.image.min() >= -1 and best.top.image.max() < len(images)):
        raise QkjaxError(f"cannot resume from {partial}: it contains images that are not in the set; remove this file")
    require_finite({"scores": best.top.score[best.top.image >= 0]}, images.name, partial)
    return top_images_dataset(best, grid, tuple(scores), images.names, unreadable, measure(modes), attrs)


def scan_settings(
    checkpoint, images: ImageSet, top: int, scores, stream: Stream, options: PassOptions
) -> dict[str, str]:
    """The settings on which the result of `top_images` depends, except for the number of modes with maps."""
    return settings_of(checkpoint, images, options, scores=tuple(scores), top=top, stream=stream)


def check(checkpoint: Checkpoint, top: int, scores: tuple[str, ...], options: PassOptions) -> tuple[int, int]:
    """Checks the arguments of `top_images`; returns the number of rows and columns of patches.

    Raises:
      QkjaxError: a score is unknown, `top` or `batch` is below 1, or the model does not support the resolution.
    """
    if not scores:
        raise QkjaxError(f"scores=(): expected one or more scores among {', '.join(SCORES)}")
    if unknown := sorted(set(scores) - set(SCORES)):
        raise QkjaxError(
            f"scores={unknown[0]!r}: unknown score{nearest(unknown[0], SCORES)}; expected one of {', '.join(SCORES)}"
        )
    if top < 1:
        raise QkjaxError(f"top={top}: expected a whole number of at least 1")
    batch_size(options.batch)
    return photograph_grid(checkpoint, options.resolution)


def mapped_modes(requested: int | None, shape: tuple[int, int, int], places: int, grid: tuple[int, int]) -> int:
    """The number of modes of each head whose maps `top_images` stores; see the argument `maps` of `top_images`.

    Args:
      shape: number of layers, of heads per layer, and of modes per head.

    Raises:
      QkjaxError: `requested` is below 0.
    """
    if requested is None:
        requested = min(MAPPED, MAP_BYTES // _map_bytes(shape, places, grid))
    if requested < 0:
        raise QkjaxError(f"maps={requested}: expected a whole number of at least 0")
    return min(requested, shape[2])


def _map_bytes(shape: tuple[int, int, int], places: int, grid: tuple[int, int]) -> int:
    """The number of bytes of the maps of one mode per head; see `mapped_modes`."""
    return shape[0] * shape[1] * 2 * places * 2 * grid[0] * grid[1] * np.dtype(np.float32).itemsize


def maps_for(checkpoint: Checkpoint, images: int, top: int, requested: int, options: PassOptions, partial: Path) -> int:
    """The number of modes of each head whose maps a scan computes, so that no second pass is needed for `requested`.

    An interrupted pass continues with the number of modes with which it began. If the maps of `requested` modes would
    take more than 512 MB, the number is the default of `top_images`.

    Args:
      checkpoint: the checkpoint.
      images: number of images.
      top: number of images per mode and sign.
      requested: the number of modes.
      options: options of the pass.
      partial: file in which the pass saves its progress.
    """
    config, grid = checkpoint.config, photograph_grid(checkpoint, options.resolution)
    shape, places = (config.depth, config.heads, modes_per_head(checkpoint)), min(top, images)
    earlier = interrupted_settings(partial).get("maps", "")
    if earlier.isdecimal() and len(earlier) < 9:
        return int(earlier)
    affordable = requested * _map_bytes(shape, places, grid) <= MAP_BYTES
    return mapped_modes(requested if affordable else None, shape, places, grid)


def scan_step(checkpoint: Checkpoint, modes: Modes, stream: Stream, scores: tuple[str, ...], options: PassOptions):
    """Returns the step that `run_pass` runs for each batch; it uses all devices of this host."""
    split, whole = over_devices(0), over_devices(None)
    on_device = jax.device_put((checkpoint.params, modes, scaling(checkpoint.preprocess)), whole)
    model = ViT(checkpoint.config, options.dtype)

    def step(state: TopMaps, batch: Batch) -> tuple[TopMaps, Callable[[], Rows]]:
        pixels, index = jax.device_put((batch.pixels, batch.index), split)
        state = jax.device_put(state, whole)  # otherwise the first step would be compiled separately
        state, last = _step(model, *on_device, state, pixels, index, stream=stream, scores=scores)

        def rows() -> Rows:
            jax.block_until_ready(last)
            return {}

        return state, rows

    return step
