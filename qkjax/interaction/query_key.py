"""The query and key parameters of all layers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkjax.interaction.rotary.rotation import Rotation

Stack = np.ndarray


class QueryKey(NamedTuple):
    """The parameters of the attention logits of all layers: L layers, D embed, H heads, d head_dim.

    The logit is logit_ij = (y_i Wq + bq) . (y_j Wk + bk) / sqrt(d), where y = norm_scale * normalised token +
    norm_bias.

    `norm_centers` is True if the norm subtracts the mean of a token (LayerNorm), and False if it does not (RMSNorm).

    `rotation` is the rotation of queries and keys at the positions of a grid, for models with rotary positions; the
    logit is then (y_i Wq + bq) R(p_i) . (y_j Wk + bk) R(p_j) / sqrt(d). It is None for all other models.

    Example:
      >>> import qkjax
      >>> parts = qkjax.query_key(qkjax.load("dinov2-vits14-focus").params)
      >>> parts.query_kernel.shape
      (12, 384, 6, 64)
    """

    query_kernel: Float[Stack, "layers embed heads head_dim"]
    key_kernel: Float[Stack, "layers embed heads head_dim"]
    query_bias: Float[Stack, "layers heads head_dim"]
    key_bias: Float[Stack, "layers heads head_dim"]
    norm_scale: Float[Stack, "layers embed"]
    norm_bias: Float[Stack, "layers embed"]
    norm_centers: bool = True
    rotation: Rotation | None = None
