"""Computes the output-value modes of a checkpoint in memory."""

from qkjax.analyses.decomposition import check_frame
from qkjax.interaction import output_value as by_kernels
from qkjax.interaction.modes import Modes
from qkjax.interaction.output_value import OutputValue
from qkjax.vit import output_value as tree
from qkjax.weights.checkpoint import Checkpoint


def output_value_modes(
    checkpoint: Checkpoint | OutputValue, *, fold_scale: bool = False, center: bool = False
) -> Modes:
    """Computes the singular modes of Wv Wo for all layers and heads: what a head reads from tokens, and what it writes.

    In mode n, a head reads the projection y_j . u_n from every token that it attends to, and adds s_n (y_j . u_n) v_n
    to the residual stream of the query. In a model with LayerScale, Wo includes the LayerScale of the attention branch.
    Values do not rotate, so rotary positions do not matter.

    Args:
      checkpoint: a checkpoint, or its value and output kernels.
      fold_scale: include the LayerNorm scale g: the modes are then those of diag(g) Wv Wo, which acts on normalised
        tokens.
      center: also remove the mean over the embedding on both sides: the modes are those of C diag(g) Wv Wo C, where
        C = I - 11^T / D. Requires `fold_scale`.

    Returns:
      `Modes`: u (read directions) and v (written directions) of shape (layers, heads, embed, rank), and s of shape
      (layers, heads, rank). `measure` accepts them: a mode with a cosine near 1 copies what it reads. Functions for
      query-key modes refuse them.

    Raises:
      QkjaxError: `center` is set without `fold_scale` or for a model with RMSNorm, or a norm lies between the
        attention-weighted values and the output (BEiT-3).

    Example:
      >>> import qkjax
      >>> modes = qkjax.output_value_modes(qkjax.load("dinov2-vits14-focus"))
      >>> modes
      Modes(12 layers x 6 heads x 64 modes, embed 384, frame output_value)
    """
    parts = tree.output_value(checkpoint.params) if isinstance(checkpoint, Checkpoint) else checkpoint
    check_frame(fold_scale, center, parts.norm_centers)
    return by_kernels.output_value_modes(parts, fold_scale=fold_scale, center=center)
