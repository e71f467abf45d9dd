"""The modes and bias terms of a checkpoint in memory."""

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
    """Singular modes of M = Wq Wk^T of all layers and heads (the paper, section 2.2).

    Args:
      checkpoint: a checkpoint; or its `QueryKey`; or the query kernels, (layers, embed, heads, head_dim), followed by
        the key kernels of the same shape.
      fold_scale: fold the LayerNorm scale g into M: diag(g) M diag(g), which acts on normalised tokens; not for
        kernels.
      center: also remove the mean direction, which LayerNorm removes: C diag(g) M diag(g) C, C = I - 11^T / D. Needs
        `fold_scale`, except for kernels.
      normalize: divide M by sqrt(head_dim), so that strengths are in units of the attention logit.
      norm_scale: g of the LayerNorm, for kernels: folds it as `fold_scale` does.

    Returns:
      `Modes` with u (layers, heads, embed, rank), s (layers, heads, rank), v like u, and their frame. See
      `qkjax.interaction.modes.decompose` for the accuracy.

    Raises:
      QkjaxError: kernels of other shapes, `center` without `fold_scale` or for an RMSNorm, or `fold_scale` for kernels.

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
            raise QkjaxError("decompose takes a checkpoint, or two kernels with norm_scale=..., not fold_scale=True")
        how = {"norm_scale": norm_scale, "center": center, "normalize": normalize}
        return modes.decompose(checkpoint, key_kernel, **how)
    if key_kernel is not None or norm_scale is not None:
        raise QkjaxError("decompose takes a checkpoint alone, or two kernels; a checkpoint and an array were given")
    check_frame(fold_scale, center, bool(checkpoint.norm_centers))
    scale = checkpoint.norm_scale if fold_scale else None
    kernels = checkpoint.query_kernel, checkpoint.key_kernel
    return modes.decompose(*kernels, norm_scale=scale, center=center, normalize=normalize)


def bias_terms(checkpoint: Checkpoint | QueryKey) -> BiasTerms:
    """What the query and key biases add to the attention logits, see `BiasTerms`.

    Example:
      >>> import qkjax
      >>> terms = qkjax.bias_terms(qkjax.load("dinov2-vits14-focus"))
      >>> terms.key_direction.shape
      (12, 6, 384)
    """
    return bias.bias_terms(query_key(checkpoint.params) if isinstance(checkpoint, Checkpoint) else checkpoint)


def check_frame(fold_scale: bool, center: bool, norm_centers: bool = True) -> None:
    """Refuses a frame that does not exist.

    Raises:
      QkjaxError: `center` without `fold_scale`, or for an RMSNorm.
    """
    if center and not norm_centers:
        raise QkjaxError("center=True removes the mean direction, which this model's RMSNorm leaves in: drop center")
    if center and not fold_scale:
        raise QkjaxError(
            "center=True needs fold_scale=True: it removes a direction of normalised tokens, on which the folded M acts"
        )
