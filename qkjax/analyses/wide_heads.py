"""Widens the heads of a checkpoint, so that new kernels represent any edit exactly."""

from dataclasses import replace

import numpy as np

from qkjax.interaction.edit import EditedHeads
from qkjax.vit.tree import widened_heads
from qkjax.weights.checkpoint import Checkpoint


def wide_columns(checkpoint: Checkpoint) -> int:
    """Number of columns that represent any edit exactly: twice head_dim for M', and one for the key bias term."""
    return 2 * checkpoint.config.head_dim + 1


def scaled(heads: EditedHeads, checkpoint: Checkpoint) -> EditedHeads:
    """Scales the queries of widened heads, because the model divides the logits by the root of the larger head_dim."""
    factor = np.sqrt(heads.query_kernel.shape[-1] / checkpoint.config.head_dim).astype(np.float32)
    return heads._replace(query_kernel=heads.query_kernel * factor, query_bias=heads.query_bias * factor)


def widened(checkpoint: Checkpoint, columns: int) -> Checkpoint:
    """Widens the heads of a checkpoint to `columns` columns; the new columns of values and outputs are zero.

    The caller must then replace the query and key kernels.
    """
    params = widened_heads(checkpoint.params, columns)
    return replace(checkpoint, config=replace(checkpoint.config, head_dim=columns), params=params)
