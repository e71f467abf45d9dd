"""Checks that a pass could use at least one image, and that all its scores are finite."""

from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.sets import ImageSet, Unreadable
from qkjax.runtime.files import remove


def require_readable(unreadable: Unreadable, images: ImageSet, partial: Path | None) -> None:
    """Checks that at least one image could be read.

    Raises:
      QkjaxError: no image could be read. The function removes the progress file, so that the next run reads the images
        again.
    """
    if len(unreadable) == len(images):
        if partial:
            remove(partial)
        first = unreadable[0][1]
        raise QkjaxError(
            f"none of the {len(images)} images of {images.name} can be used; the reason for the first image: {first}"
        )


def require_finite(scores: np.ndarray, images: ImageSet, partial: Path | None) -> None:
    """Checks that all scores are finite.

    Raises:
      QkjaxError: a score is NaN or infinite, for example because the model's activations overflow. The function removes
        the progress file.
    """
    if not np.isfinite(scores).all():
        if partial:
            remove(partial)
        share = 1 - np.isfinite(scores).mean()
        raise QkjaxError(
            f"{share:.2%} of the scores of {images.name} are NaN or infinite: the model's activations overflow; check "
            "its parameters and preprocessing, or pass dtype='float32'"
        )
