"""The frame of M: whether the matrix M includes LayerNorm's scale, LayerNorm's centring, and the factor 1 / sqrt(d)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Frame:
    """States which factors the matrix M includes; see `decompose` for the formulas.

    Attributes:
      fold_scale: M includes the LayerNorm scale, so that M acts on normalised tokens.
      center: M excludes the mean direction, which LayerNorm removes from tokens.
      normalize: M is divided by sqrt(head_dim).
    """

    fold_scale: bool = False
    center: bool = False
    normalize: bool = False

    def __str__(self) -> str:
        return ", ".join(name for name, value in vars(self).items() if value) or "plain"


PLAIN = Frame()
"""The plain frame, in which M acts on the output of the LayerNorm, as in the paper."""


def fold(
    kernel: Float[Array | np.ndarray, "embed heads head_dim"],
    norm_scale: Float[Array | np.ndarray, "embed"] | None,
    center: bool,
) -> Float[Array | np.ndarray, "embed heads head_dim"]:
    """Computes C diag(g) W, the kernels in the requested frame; `decompose` defines the letters."""
    if norm_scale is not None:
        kernel = kernel * norm_scale.astype(kernel.dtype)[:, None, None]
    return kernel - kernel.mean(axis=0, keepdims=True) if center else kernel
