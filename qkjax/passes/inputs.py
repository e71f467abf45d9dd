"""Prepares images for a checkpoint: channels, resolution, normalisation and batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.limits import MAX_SIDE, check_sides
from qkjax.images.prefetch import batches, photograph_batches
from qkjax.images.preprocess import Pixels, Preprocess, side_lengths
from qkjax.images.sets import Batch, ImageSet
from qkjax.passes.options import PassOptions, batch_size
from qkjax.vit.model import patch_grid
from qkjax.vit.tree import patch_kernel, with_patch_embedding
from qkjax.vit.windows import require_one_window
from qkjax.weights.checkpoint import Checkpoint


def for_photographs(checkpoint: Checkpoint) -> Checkpoint:
    """Converts a model for grey images, such as digits, to a model for colour photographs.

    The converted model uses the mean of red, green and blue as grey. The conversion is exact, because the patch
    embedding is linear. A model that does not have exactly one input channel is returned unchanged.

    Raises:
      QkjaxError: the argument is not a checkpoint.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise QkjaxError(f"checkpoint is a {type(checkpoint).__name__}: expected a checkpoint, as qkjax.load returns")
    if checkpoint.config.channels != 1:
        return checkpoint
    params = with_patch_embedding(checkpoint.params, kernel=np.repeat(patch_kernel(checkpoint.params) / 3, 3, axis=2))
    return replace(checkpoint, config=replace(checkpoint.config, channels=3), params=params)


def photograph_grid(checkpoint: Checkpoint, resolution: tuple[int, int] | None) -> tuple[int, int]:
    """The number of rows and of columns of patches in a photograph at the given resolution.

    Raises:
      QkjaxError: the model does not support the resolution, or does not accept images with three channels.
    """
    config = checkpoint.config
    if config.channels != 3:
        raise QkjaxError(
            f"{checkpoint.name} accepts images with {config.channels} channels, but photographs have 3: pass a model "
            "with 3 channels (`for_photographs` converts a model with 1 channel)"
        )
    return patch_grid(config, resolution_of(checkpoint, resolution))


def whole_grid(checkpoint: Checkpoint, resolution: tuple[int, int] | None, reason: str) -> tuple[int, int]:
    """`photograph_grid`, for an analysis that needs every query to attend to the whole image.

    Args:
      checkpoint: the checkpoint.
      resolution: (height, width) in pixels; by default the checkpoint's own resolution.
      reason: what the analysis does that attention within windows does not permit.

    Raises:
      QkjaxError: as for `photograph_grid`, or the model attends within several windows at this resolution.
    """
    grid = photograph_grid(checkpoint, resolution)
    require_one_window(checkpoint.config, grid, reason)
    return grid


def resolution_of(checkpoint: Checkpoint, requested: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images in pixels: the requested resolution, or by default the checkpoint's resolution.

    The default is the size of the crop in the checkpoint's preprocessing. If this crop is square but the grid of the
    position embedding is not, the default is the grid multiplied by the patch size.
    """
    if requested:
        if max(requested) > MAX_SIDE:  # `patch_grid` refuses images that are too small
            check_sides("resolution", tuple(requested))
        return requested
    config, crop = checkpoint.config, side_lengths(checkpoint.preprocess, None)
    if not config.grid or crop[0] != crop[1]:
        return crop
    height, width = (n * size for n, size in zip(config.grid, config.patch_size, strict=True))
    return crop if height == width else (height, width)


def crop_to_patches(checkpoint: Checkpoint, picture: Pixels) -> UInt8[np.ndarray, "rows columns 3"]:
    """Crops a picture to whole patches, because the model ignores pixels beyond the last whole patch."""
    height, width = (n // size * size for n, size in zip(picture.shape, checkpoint.config.patch_size, strict=False))
    return picture[:height, :width]


def scaling(preset: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of pixels, which broadcast to (images, height, width, channels)."""
    mean, std = (np.reshape(np.array(x, np.float32), (1, 1, 1, 3)) for x in (preset.mean, preset.std))
    return mean, std


def normalised_pixels(
    pixels: Array, scaling: tuple[Array | np.ndarray, Array | np.ndarray]
) -> Float[Array, "batch height width channels"]:
    """Normalises pixel values from 0 to 255 within a jitted program.

    The argument `scaling` is the result of the function `scaling`.
    """
    mean, std = scaling
    return (pixels.astype(jnp.float32) / 255 - mean) / std


Batches = Callable[[Iterable[Sequence[int]]], Iterator[Batch]]
"""Type of the function that `run_pass` needs: it takes groups of image indices, and yields one batch per group."""


def batches_of_photographs(checkpoint: Checkpoint, images: ImageSet, options: PassOptions) -> Batches:
    """Returns a function that yields batches of photographs, preprocessed for a checkpoint."""
    size, resolution = batch_size(options.batch, len(images)), resolution_of(checkpoint, options.resolution)
    return lambda groups: photograph_batches(images, groups, size, checkpoint.preprocess, resolution)


def batches_with_masks(
    checkpoint: Checkpoint, images: ImageSet, options: PassOptions, crop: Callable, blank: Callable
) -> Batches:
    """Returns a function that yields batches of images with masks, preprocessed for a checkpoint.

    Args:
      checkpoint: the checkpoint whose preprocessing, resolution and patch size are used.
      images: the image set.
      options: options of the pass.
      crop: function that takes an item of the set, its name, a preset, a resolution and a patch size, and returns
        pixels and masks.
      blank: function that takes a preset, a resolution and a patch size, and returns the pixels and masks that replace
        a missing image.
    """
    size = batch_size(options.batch, len(images))
    target = checkpoint.preprocess, resolution_of(checkpoint, options.resolution), checkpoint.config.patch_size
    return lambda groups: batches(images, groups, size, lambda item, name: crop(item, name, *target), blank(*target))
