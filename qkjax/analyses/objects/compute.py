"""Measures whether the query and the key of a mode are on the same object (the paper's figure 6).

One pass over images with object masks suffices. Letters: L layers, H heads, R modes.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from qkjax.activations.largest_object import chosen_objects
from qkjax.activations.project import Stream, project
from qkjax.activations.scores import both_signs
from qkjax.activations.top_k import Top, add, empty, merge
from qkjax.analyses.decomposition import decompose, frame_attrs
from qkjax.analyses.objects.tables import objects_dataset
from qkjax.analyses.usable import require_finite, require_readable
from qkjax.errors import QkjaxError
from qkjax.images.segmented import Segmented, blank_objects, crop_objects, mosaics
from qkjax.images.sets import Batch, ImageSet
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes
from qkjax.passes.engine import Rows, batch_groups, run_pass
from qkjax.passes.inputs import batches_with_masks, for_photographs, normalised_pixels, scaling, whole_grid
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.settings import settings_of
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint


@partial(jax.jit, static_argnames=("model", "stream"), donate_argnames="top")
def _step(model: ViT, params, modes: Modes, scaling, top: Top, pixels, objects, index, stream: Stream):
    """Updates the top images of every mode with a batch; the buffers of the old top images are donated.

    The second result is a number, on which the caller can wait even after the next step has reused the first result's
    memory.

    An image is stored as twice its index, plus one if the query object and the key object are the same.
    """
    images = normalised_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=(stream,))
    scores, same = [], []
    for layer, tokens in enumerate(layer_outputs(out, stream)):
        maps = project(tokens[:, model.config.prefix_tokens :], modes.u[layer], modes.v[layer])
        scores.append(both_signs("product", maps[:, :, 0], maps[:, :, 1]))
        largest = jax.vmap(chosen_objects)(maps, objects)  # (batch, 2, heads, modes, signs)
        same.append(largest[:, 0] == largest[:, 1])
    scores, same = (jnp.stack(x, axis=1) for x in (scores, same))
    stored = 2 * index.reshape(-1, *(1,) * (same.ndim - 1)) + same
    top = add(top, scores, index, stored)
    return top, top.image.max()


def same_object(
    checkpoint: Checkpoint,
    images: ImageSet[Segmented] | None = None,
    *,
    top: int = 5,
    stream: Stream = "norm",
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures how often the query object and the key object of a mode are the same (the paper, figure 6).

    For each mode, the function finds the images that excite the mode most. In each image, the query object is the
    object with the largest mean projection onto u, and the key object is the object with the largest mean projection
    onto v. For a model with rotary positions, the modes are those of the mean over places, and tokens are projected
    without rotation.

    An interrupted pass resumes from the file `partial`. Several hosts can divide the images of a pass among
    themselves.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      images: images with object masks; by default 200 composed scenes; see `qkjax.images.segmented.mosaics`. See
        `open_objects` for ADE20K.
      top: number of images per mode. The score of an image is the product of the maxima of the query map and the key
        map.
      stream: the tokens to project; see `qkjax.activations.project.Stream`.
      options: batch size, resolution and floating-point format.
      partial: file in which the pass saves its progress; the caller removes the file. If None, progress is not saved.
      fresh: whether to discard the progress in `partial`, whatever its settings.

    Returns:
      A dataset with dimensions layer, head, mode, sign, place and image; see `objects_dataset`.

    Raises:
      QkjaxError: `top` is below 1, no image is usable, the model does not support the resolution, or `partial` has
        different settings.

    Example:
      >>> import qkjax
      >>> from qkjax.images.segmented import mosaics
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> result = qkjax.same_object(checkpoint, mosaics(count=2, seed=0), top=1)
      >>> result.same.dims
      ('layer', 'head', 'mode', 'sign', 'place')
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    if fresh and partial:
        remove(partial)
    if top < 1:
        raise QkjaxError(f"top={top}: expected a whole number of at least 1")
    checkpoint = for_photographs(checkpoint)
    whole_grid(checkpoint, options.resolution, "the two patches of a mode may lie in different windows")
    images = mosaics(200, 0) if images is None else images
    modes = decompose(checkpoint)
    settings = settings_of(checkpoint, images, options, top=top, stream=stream)
    layers, heads, _, rank = modes.u.shape
    result = run_pass(
        _on_devices(checkpoint, modes, options, stream),
        empty((layers, heads, rank, 2), min(top, len(images))),
        batch_groups(len(images), batch_size(options.batch)),
        batches_with_masks(checkpoint, images, options, crop_objects, blank_objects),
        partial,
        settings,
        merge=lambda tops: merge(Top(*map(np.stack, zip(*tops, strict=True)))),
        shard=options.shard,
    )
    require_readable(result.unreadable, images, partial)
    objects = np.zeros(len(images), np.int64)
    objects[result.rows["index"]] = result.rows["objects"]
    left_out = [*images.left_out, *((images.names[i], reason) for i, reason in result.unreadable)]
    attrs = {"model": checkpoint.name, "images": images.name, "settings": json.dumps(settings), **frame_attrs(modes)}
    score, stored = (np.asarray(x) for x in result.state)
    require_finite({"scores": score[stored >= 0]}, images.name, partial)
    return objects_dataset(score, stored, objects, images.names, left_out, measure(modes), attrs)


def _on_devices(checkpoint: Checkpoint, modes: Modes, options: PassOptions, stream: Stream):
    """Returns the step of the pass, which updates the top images of every mode and counts the objects in each image."""
    split, whole = over_devices(0), over_devices(None)
    on_device = jax.device_put((checkpoint.params, modes, scaling(checkpoint.preprocess)), whole)
    model = ViT(checkpoint.config, options.dtype)

    def step(top: Top, batch: Batch) -> tuple[Top, Callable[[], Rows]]:
        arrays = jax.device_put((batch.pixels, batch.masks, batch.index), split)
        top, last = _step(model, *on_device, jax.device_put(top, whole), *arrays, stream=stream)

        def rows() -> Rows:
            jax.block_until_ready(last)
            present = batch.index >= 0
            objects = (batch.masks[present].sum(-1) > 0).sum(-1)
            return {"index": batch.index[present], "objects": objects}

        return top, rows

    return step
