"""One forward pass of a checkpoint in memory, and what it takes."""

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
    """A photograph as the checkpoint takes it: resized, cut and normalised as its family does.

    Args:
      photograph: a picture, an array (height, width, 3) of uint8, a file, or the name of a default photograph.
      resolution: (height, width) in pixels; None: the checkpoint's own.

    Raises:
      QkjaxError: it cannot be read, or is too small.

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
    """One jitted forward pass, which returns only what is requested.

    Args:
      images: preprocessed, channels last, as `preprocess` gives them, with a batch axis.
      capture: intermediates of all layers, see `qkjax.vit.model.forward`.
      dtype: "float32" or "bfloat16" products.

    Returns:
      The logits (or the representation, without a head), and a dict of the captured arrays together with "encoded"
      (batch, tokens, embed), the tokens after the last LayerNorm.

    Raises:
      QkjaxError: an unknown name in `capture`, or images that the model cannot take.

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
