"""Converts the patch embedding of a torch model, which is a convolution or a dense layer."""

from math import isqrt

import numpy as np

from qkjax.errors import QkjaxError, nearest
from qkjax.weights.families.facts import Facts


def orient_patches(flat: dict[str, np.ndarray], is_predictor: bool, facts: Facts) -> None:
    """Reshapes the patch embedding to (rows, columns, channels, width).

    Raises:
      QkjaxError: there is no patch embedding, or its patches are not square RGB patches of images.
    """
    kernel = flat.get("embedding/kernel")
    if kernel is None:
        raise QkjaxError("the parameters have no patch embedding" + nearest("patch_embed.proj.weight", flat))
    if kernel.ndim == 2 and is_predictor:
        flat["embedding/kernel"] = kernel.T[None, None]
    elif kernel.ndim == 2:
        width, inputs = kernel.shape
        side = isqrt(inputs // 3)
        height, breadth = facts.patch_size or (side, side)
        if height * breadth * 3 != inputs:
            raise QkjaxError(f"the patch embedding has {inputs} inputs, expected 3 channels of a square patch")
        if facts.layout.channels_first:
            flat["embedding/kernel"] = kernel.reshape(width, 3, height, breadth).transpose(2, 3, 1, 0)
        else:
            flat["embedding/kernel"] = kernel.reshape(width, height, breadth, 3).transpose(1, 2, 3, 0)
    elif kernel.ndim == 4:
        flat["embedding/kernel"] = kernel.transpose(2, 3, 1, 0)
    else:
        raise QkjaxError(f"the patch embedding has shape {kernel.shape}: expected patches of images, not of videos")


def fold_pixel_scale(flat: dict[str, np.ndarray]) -> None:
    """Moves the normalisation of pixels inside a model, (x - mean) / std, into the patch embedding."""
    mean, std = flat.pop("pixel_mean", None), flat.pop("pixel_std", None)
    if mean is None or std is None:
        return
    kernel = flat["embedding/kernel"].astype(np.float64) / std.reshape(-1, 1)
    bias = flat.get("embedding/bias", np.zeros(kernel.shape[-1]))
    flat["embedding/bias"] = (bias - np.einsum("hwcd,c->d", kernel, mean.reshape(-1))).astype(np.float32)
    flat["embedding/kernel"] = kernel.astype(np.float32)
