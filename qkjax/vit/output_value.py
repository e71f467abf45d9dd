"""Reads the value and output parameters of all layers from a parameter tree."""

from collections.abc import Mapping

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.interaction.output_value import OutputValue
from qkjax.vit.tree import ATTENTION, ENCODER, NORM, attention_parameters, block_name

LAYER_SCALE, INNER_NORM = "LayerScale_0", "attention_norm"
"""Names of the LayerScale after attention, and of the norm between the attention-weighted values and the output."""


def output_value(params: Mapping) -> OutputValue:
    """Stacks the value and output parameters of all layers, in float32. The output includes the LayerScale.

    Args:
      params: a Linen parameter tree, such as the `params` of the checkpoint that `load` returns.

    Raises:
      QkjaxError: the tree has no encoder blocks, or the shapes of the blocks differ, or a norm lies between the
        attention-weighted values and the output, so that the output is not linear in the values.

    Example:
      >>> import qkjax
      >>> output_value(qkjax.load("dinov2-vits14-focus").params).value_bias.shape
      (12, 6, 64)
    """
    try:
        layers = [(params[ENCODER][block_name(i)], own) for i, own in enumerate(attention_parameters(params))]
        if any(INNER_NORM in block or INNER_NORM in block[ATTENTION] for block, _ in layers):
            raise QkjaxError(
                "the model has a norm between the attention-weighted values and the output projection: expected an "
                "output that is linear in the values; analyse the model's query-key modes, with qkjax.decompose"
            )
        centers = "bias" in layers[0][0][NORM]  # an RMSNorm has no bias, and does not subtract the mean
        parts = [
            (own["value"]["kernel"], _scaled(own["out"]["kernel"], block), own["value"]["bias"], block[NORM]["scale"],
             block[NORM]["bias"] if centers else np.zeros_like(block[NORM]["scale"]))
            for block, own in layers
        ]  # fmt: skip
        stacked = (np.stack([np.asarray(x, np.float32) for x in part]) for part in zip(*parts, strict=True))
        return OutputValue(*stacked, norm_centers=centers)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise QkjaxError(f"params is not the parameter tree of a ViT ({error}): pass qkjax.load(...).params") from error


def _scaled(kernel: np.ndarray, block: Mapping) -> np.ndarray:
    kernel = np.asarray(kernel, np.float32)
    return kernel * np.asarray(block[LAYER_SCALE]["scale"], np.float32) if LAYER_SCALE in block else kernel
