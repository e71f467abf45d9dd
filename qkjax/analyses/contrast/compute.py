"""Computes contrastive covariances of queries and keys, in one pass over images with object masks.

Letters: B images, L layers, H heads, d head_dim.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from qkjax.activations.contrast import contrast_of_modes
from qkjax.activations.contrast import contrastive_covariance as of_image
from qkjax.analyses.contrast.tables import contrast_dataset
from qkjax.analyses.decomposition import decompose, query_key
from qkjax.analyses.usable import require_finite, require_finite_modes, require_readable
from qkjax.images.segmented import Segmented, blank_objects, crop_objects, mosaics
from qkjax.images.sets import Batch, ImageSet
from qkjax.passes.engine import Rows, batch_groups, run_pass
from qkjax.passes.inputs import batches_with_masks, for_photographs, normalised_pixels, scaling, whole_grid
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.settings import settings_of
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint


@partial(jax.jit, static_argnames="model")
def _step(model: ViT, params, scaling, pixels, objects, present) -> Float[Array, "2 L H d d"]:
    """The sum over the images of a batch of their contrastive covariances, with masks as given, and turned by 180
    degrees."""
    _, out = model.apply({"params": params}, normalised_pixels(pixels, scaling), capture=("query", "key"))
    special, layers = model.config.prefix_tokens, []
    for query, key in zip(layer_outputs(out, "query"), layer_outputs(out, "key"), strict=True):
        patches = [x[:, special:].astype(jnp.float32) for x in (query, key)]
        both = jnp.stack([jax.vmap(of_image)(*patches, masks) for masks in (objects, objects[..., ::-1])])
        layers.append(jnp.where(present[None, :, None, None, None], both, 0).sum(1))  # padding has no objects
    return jnp.stack(layers, axis=1)


def contrastive_covariance(
    checkpoint: Checkpoint,
    images: ImageSet[Segmented] | None = None,
    *,
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures how queries and keys on the same object differ from those on different objects (arXiv 2602.04752).

    For each head, the contrastive covariance is C = E[q k^T | same object] - E[q k^T | different objects], as the mean
    over images; see `qkjax.activations.contrast`. The result contains C, its singular values, the contribution of each
    mode of Wq Wk^T to the mean logit difference between same and different objects, and the overlap of the singular
    vectors of C with the queries and keys of the modes, with its value by chance. Patches of one object are also close
    to each other; the control is therefore the logit difference with masks that are turned by 180 degrees. For a model
    with rotary positions, queries and keys are those before the rotation.

    An interrupted pass resumes from the file `partial`. Several hosts can divide the images of a pass among themselves.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      images: images with object masks; by default 200 composed scenes; see `qkjax.images.segmented.mosaics`. See
        `open_objects` for ADE20K.
      options: batch size, resolution and floating-point format.
      partial: file in which the pass saves its progress; the caller removes the file. If None, progress is not saved.
      fresh: whether to discard the progress in `partial`, whatever its settings.

    Returns:
      A dataset with dimensions layer, head, query_dim, key_dim, mode and vector; see `contrast_dataset`.

    Raises:
      QkjaxError: no image is usable, the model does not support the resolution, or `partial` has different settings.

    Example:
      >>> import qkjax
      >>> from qkjax.images.segmented import mosaics
      >>> result = qkjax.contrastive_covariance(qkjax.load("dinov2-vits14-focus"), mosaics(count=2, seed=0))
      >>> result.mode_contrast.dims
      ('layer', 'head', 'mode')
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    if fresh and partial:
        remove(partial)
    checkpoint = for_photographs(checkpoint)
    whole_grid(checkpoint, options.resolution, "objects are compared over all pairs of patches")
    images = mosaics(200, 0) if images is None else images
    settings = settings_of(checkpoint, images, options)
    result = run_pass(
        _on_devices(checkpoint, options),
        (),
        batch_groups(len(images), batch_size(options.batch)),
        batches_with_masks(checkpoint, images, options, crop_objects, blank_objects),
        partial,
        settings,
        shard=options.shard,
    )
    require_readable(result.unreadable, images, partial)
    require_finite({"covariances": result.rows["covariance"]}, images.name, partial)
    total = np.zeros(result.rows["covariance"].shape[1:])
    for batch_sum in result.rows["covariance"]:  # in the order of the batches, so that the result is bit-identical
        total = total + batch_sum
    parts = query_key(checkpoint.params)
    modes = decompose(parts.query_kernel, parts.key_kernel)
    require_finite_modes(modes, checkpoint.name)
    towards = [
        np.einsum("ldhk,lhdn->lhkn", np.asarray(kernel, np.float64), np.asarray(vectors, np.float64))
        for kernel, vectors in ((parts.query_kernel, modes.u), (parts.key_kernel, modes.v))
    ]
    covariance, control = total / len(result.rows["index"])
    left_out = [*images.left_out, *((images.names[i], reason) for i, reason in result.unreadable)]
    names = [images.names[i] for i in result.rows["index"]]
    attrs = {"model": checkpoint.name, "images": images.name, "settings": json.dumps(settings)}
    strength = np.maximum(np.asarray(modes.s, np.float64), np.finfo(np.float64).tiny)
    contrast = contrast_of_modes(covariance, *towards, strength)
    return contrast_dataset(covariance, contrast, control, names, left_out, attrs)


def _on_devices(checkpoint: Checkpoint, options: PassOptions):
    """Returns the step of the pass, which sums the covariances of the images in a batch."""
    split, whole = over_devices(0), over_devices(None)
    on_device = jax.device_put((checkpoint.params, scaling(checkpoint.preprocess)), whole)
    model = ViT(checkpoint.config, options.dtype)

    def step(state: tuple, batch: Batch) -> tuple[tuple, Callable[[], Rows]]:
        present = batch.index >= 0
        result = _step(model, *on_device, *jax.device_put((batch.pixels, batch.masks, present), split))
        return state, lambda: {"index": batch.index[present], "covariance": jax.device_get(result)[None]}

    return step
