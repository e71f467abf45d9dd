"""Runs a forward pass of a checkpoint in memory, and prepares photographs for it."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from qkjax.analyses.image import open_photo
from qkjax.images import preprocess as pixels
from qkjax.images.preprocess import Photograph
from qkjax.passes.inputs import for_photographs, resolution_of
from qkjax.vit import model
from qkjax.vit.model import ViT
from qkjax.weights.checkpoint import Checkpoint


def preprocess(
    checkpoint: Checkpoint, photograph: Photograph | str | Path, *, resolution: tuple[int, int] | None = None
) -> Float[np.ndarray, "height width 3"]:
    """Resizes, crops and normalises a photograph in the way that the checkpoint's model family requires.

    Args:
      checkpoint: the checkpoint whose preprocessing is used.
      photograph: a Pillow image, a uint8 array (height, width, 3), the path of an image file, or the name of a default
        photograph.
      resolution: (height, width) in pixels; by default the checkpoint's own resolution.

    Raises:
      QkjaxError: the photograph cannot be read, or is too small.

    Example:
      >>> import qkjax
      >>> qkjax.preprocess(qkjax.load("dinov2-vits14-focus"), "chelsea").shape
      (224, 224, 3)
    """
    photo = open_photo(photograph)[1] if isinstance(photograph, str | Path) else photograph
    return pixels.preprocess(photo, checkpoint.preprocess, resolution_of(checkpoint, resolution))


def forward(
    checkpoint: Checkpoint,
    images: Float[Array | np.ndarray, "batch height width channels"],
    capture: Collection[str] = (),
    *,
    dtype: str = "float32",
) -> tuple[Array, dict[str, Array]]:
    """Runs one jitted forward pass, and returns its output and the requested intermediates.

    Args:
      checkpoint: the checkpoint.
      images: preprocessed images with a batch axis, channels last; for one image, `preprocess(...)[None]`.
      capture: names of intermediates to return from all layers; see `qkjax.vit.model.forward`.
      dtype: floating-point format of the matrix products, "float32" or "bfloat16".

    Returns:
      A tuple of the output and a dict. The output is the logits, or the representation if the model has no classifier.
      The dict contains the captured arrays, and "encoded" (batch, tokens, embed), the tokens after the last LayerNorm.

    Raises:
      QkjaxError: a name in `capture` is unknown, or the model does not support the size of the images.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> images = qkjax.preprocess(checkpoint, "chelsea")[None]
      >>> output, captured = qkjax.forward(checkpoint, images, capture=("attention",))
      >>> captured["attention"].shape
      (12, 1, 6, 257, 257)
    """
    if images.shape[-1] == 3:
        checkpoint = for_photographs(checkpoint)
    return model.forward(ViT(checkpoint.config, dtype), checkpoint.params, images, capture)
