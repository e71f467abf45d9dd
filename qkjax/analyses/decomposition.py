"""Computes the modes and the bias terms of a checkpoint in memory."""

import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction import bias, modes
from qkjax.interaction.bias import BiasTerms
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.vit.tree import query_key
from qkjax.weights.checkpoint import Checkpoint

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]


def decompose(
    checkpoint: Checkpoint | QueryKey | Kernel,
    key_kernel: Kernel | None = None,
    *,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
) -> Modes:
    """Computes the singular modes of M = Wq Wk^T for all layers and heads (the paper, section 2.2).

    Args:
      checkpoint: a checkpoint, its `QueryKey`, or an array of query kernels (layers, embed, heads, head_dim).
      key_kernel: key kernels of the same shape, if `checkpoint` is an array of query kernels.
      fold_scale: include the LayerNorm scale g in M. The modes are then those of diag(g) M diag(g), which acts on
        normalised tokens. Not allowed if kernels are given.
      center: also remove the mean direction, as LayerNorm does. The modes are then those of C diag(g) M diag(g) C,
        where C = I - 11^T / D. Requires `fold_scale`, unless kernels are given.
      normalize: divide M by sqrt(head_dim), so that strengths have the units of attention logits.
      norm_scale: the LayerNorm scale g (layers, embed) to include in M; allowed only if kernels are given.

    Returns:
      `Modes`: u and v of shape (layers, heads, embed, rank), s of shape (layers, heads, rank), and the frame of M.
      `qkjax.interaction.modes.decompose` documents the accuracy.

    Raises:
      QkjaxError: the kernels have invalid shapes, `fold_scale` is set although kernels are given, or `center` is set
        although `fold_scale` is not or although the model has RMSNorm.

    Example:
      >>> import qkjax
      >>> modes = qkjax.decompose(qkjax.load("dinov2-vits14-focus"))
      >>> modes.u.shape, modes.s.shape
      ((12, 6, 384, 64), (12, 6, 64))
    """
    if isinstance(checkpoint, Checkpoint):
        checkpoint = query_key(checkpoint.params)
    if not isinstance(checkpoint, QueryKey):
        if key_kernel is None or fold_scale:
            raise QkjaxError(
                "decompose received one kernel, or kernels and fold_scale=True: pass a checkpoint, or two kernels "
                "and norm_scale=..."
            )
        how = {"norm_scale": norm_scale, "center": center, "normalize": normalize}
        return modes.decompose(checkpoint, key_kernel, **how)
    if key_kernel is not None or norm_scale is not None:
        raise QkjaxError(
            "decompose received a checkpoint and an array: pass only a checkpoint (no key_kernel=... or "
            "norm_scale=...), or two kernels"
        )
    check_frame(fold_scale, center, bool(checkpoint.norm_centers))
    scale = checkpoint.norm_scale if fold_scale else None
    kernels = checkpoint.query_kernel, checkpoint.key_kernel
    return modes.decompose(*kernels, norm_scale=scale, center=center, normalize=normalize)


def bias_terms(checkpoint: Checkpoint | QueryKey) -> BiasTerms:
    """Computes the terms that the query and key biases add to the attention logits; see `BiasTerms`.

    Example:
      >>> import qkjax
      >>> terms = qkjax.bias_terms(qkjax.load("dinov2-vits14-focus"))
      >>> terms.key_direction.shape
      (12, 6, 384)
    """
    return bias.bias_terms(query_key(checkpoint.params) if isinstance(checkpoint, Checkpoint) else checkpoint)


def check_frame(fold_scale: bool, center: bool, norm_centers: bool = True) -> None:
    """Checks that the options `center` and `fold_scale` are compatible with each other and with the model's norm.

    Raises:
      QkjaxError: `center` is set, but `fold_scale` is not, or the model has RMSNorm."""
    if center and not norm_centers:
        raise QkjaxError(
            "center=True removes the mean direction, but this model has RMSNorm, which does not remove it: do not "
            "pass center"
        )
    if center and not fold_scale:
        raise QkjaxError(
            "center=True needs fold_scale=True: the mean direction can only be removed from an M that includes the "
            "LayerNorm scale; pass both"
        )
