"""Computes the singular modes of the output-value matrix Wv Wo of every head, without forming the matrix."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkjax.interaction.frame import Frame, fold
from qkjax.interaction.modes import Modes, decompose

Stack = np.ndarray


class OutputValue(NamedTuple):
    """The value and output parameters of all layers: L layers, D embed, H heads, d head_dim.

    A head adds sum_j attention_ij (y_j Wv + bv) Wo to the residual stream of token i, where y = norm_scale * normalised
    token + norm_bias. `output_kernel` is Wo, multiplied by the LayerScale of the attention branch if the model has one.

    `norm_centers` is True if the norm subtracts the mean of a token (LayerNorm), and False if it does not (RMSNorm).

    Example:
      >>> import qkjax
      >>> from qkjax.vit.output_value import output_value
      >>> parts = output_value(qkjax.load("dinov2-vits14-focus").params)
      >>> parts.value_kernel.shape, parts.output_kernel.shape
      ((12, 384, 6, 64), (12, 6, 64, 384))
    """

    value_kernel: Float[Stack, "layers embed heads head_dim"]
    output_kernel: Float[Stack, "layers heads head_dim embed"]
    value_bias: Float[Stack, "layers heads head_dim"]
    norm_scale: Float[Stack, "layers embed"]
    norm_bias: Float[Stack, "layers embed"]
    norm_centers: bool = True


def output_value_modes(parts: OutputValue, *, fold_scale: bool = False, center: bool = False) -> Modes:
    """Computes the singular modes of Wv Wo of every head: Wv Wo = sum_n s_n u_n v_n^T (arXiv 2406.09519 for language).

    The method is that of `qkjax.interaction.modes.decompose`, for the two thin kernels Wv and Wo^T.

    Args:
      parts: kernels of all layers.
      fold_scale: include the scale g of the LayerNorm before attention: the modes are those of diag(g) Wv Wo, which
        acts on normalised tokens.
      center: remove the mean over the embedding on both sides: the modes are those of C diag(g) Wv Wo C, where
        C = I - 11^T / D. A LayerNorm removes the mean from what it reads.

    Returns:
      `Modes`, whose u are the directions that the head reads from the tokens, and whose v are the directions that it
      writes to the residual stream. Shapes are those of `decompose`. The frame states `output_value`, so that functions
      for query-key modes refuse these modes.

    Example:
      >>> import numpy as np
      >>> value, output = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> rest = np.zeros((1, 3, 4)), np.ones((1, 12)), np.zeros((1, 12))
      >>> output_value_modes(OutputValue(value, np.moveaxis(output, 1, 3), *rest))
      Modes(1 layers x 3 heads x 4 modes, embed 12, frame output_value)
    """
    scales = parts.norm_scale if fold_scale else [None] * len(parts.norm_scale)
    with np.errstate(invalid="ignore", over="ignore"):  # kernels that are not finite have modes that are not finite
        read = np.stack([fold(kernel, g, center) for kernel, g in zip(parts.value_kernel, scales, strict=True)])
        write = np.stack([fold(np.moveaxis(kernel, 2, 0), None, center) for kernel in parts.output_kernel])
    return replace(decompose(read, write), frame=Frame(fold_scale, center, output_value=True))
