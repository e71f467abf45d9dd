"""Checks that a pass had images that it could use, and that results are finite."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.images.sets import ImageSet, Unreadable
from qkjax.interaction.modes import Modes
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


def require_finite(values: Mapping[str, Array | np.ndarray], images: str, partial: Path | None = None) -> None:
    """Checks that all values that a model computed for images are finite.

    Args:
      values: a dict from names for the error message to the values.
      images: name of the images, for the error message.
      partial: file with the progress of the pass.

    Raises:
      QkjaxError: a value is NaN or infinite, as in a model whose activations overflow. The progress file is removed.
    """
    for name, array in values.items():
        finite = np.isfinite(array)
        if not finite.all():
            if partial:
                remove(partial)
            raise QkjaxError(
                f"{1 - finite.mean():.2%} of the {name} of {images} are NaN or infinite, expected finite numbers: the "
                "model's activations overflow; check its parameters and preprocessing"
            )


def require_finite_heads(
    values: Mapping[str, Float[Array | np.ndarray, "layers heads ..."]], model: str, kernels: str = "query and key"
) -> None:
    """Checks that all values that were computed from the weights of each head are finite.

    Args:
      values: a dict from names for the error message to the values.
      model: name of the model, for the error message.
      kernels: the kernels from which the values were computed, for the error message.

    Raises:
      QkjaxError: a value is NaN or infinite, since the kernels are too large.
    """
    for name, array in values.items():
        finite = np.isfinite(array).reshape(*array.shape[:2], -1).all(-1)
        if not finite.all():
            layer, head = np.argwhere(~finite)[0]
            raise QkjaxError(
                f"the {name} of {model} are NaN or infinite in {(~finite).sum()} of {finite.size} heads (first in "
                f"layer {layer}, head {head}), expected finite numbers: its {kernels} kernels are too large"
            )


def require_finite_modes(modes: Modes, model: str) -> None:
    """Checks that all modes are finite; see `require_finite_heads`."""
    require_finite_heads({"strengths": modes.s, "query directions": modes.u, "key directions": modes.v}, model)
