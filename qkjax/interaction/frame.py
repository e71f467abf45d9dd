"""The frame of M: whether the matrix M includes LayerNorm's scale, LayerNorm's centring, and the factor 1 / sqrt(d)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Positions:
    """States which interaction of a model with rotary positions M is.

    Attributes:
      kind: "mean" for the mean over all pairs of places of the grid, "none" for tokens that are not rotated, "offset"
        for a single offset.
      grid: number of places along each axis, such as (rows, columns).
      coherence: c of each plane; see `qkjax.interaction.rotary.mean`. For a grid of several windows, c of each plane in
        each layer.
      offset: position of the query minus position of the key, in patches, if `kind` is "offset".
      window: number of places along each axis of the windows whose places the mean is over, in all layers that attend
        within windows; None if all layers attend to the whole grid.
    """

    kind: Literal["mean", "none", "offset"]
    grid: tuple[int, ...]
    coherence: tuple[float, ...] | tuple[tuple[float, ...], ...]
    offset: tuple[int, ...] | None = None
    window: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.kind == "offset":
            return f"offset {self.offset}"
        if self.kind == "none":
            return "without rotation"
        grid = f"mean over places of a {' x '.join(map(str, self.grid))} grid"
        windows = "" if self.window is None else f", or of its windows of {' x '.join(map(str, self.window))}"
        return grid + windows


@dataclass(frozen=True)
class Frame:
    """States which factors the matrix M includes; see `decompose` for the formulas.

    Attributes:
      fold_scale: M includes the LayerNorm scale, so that M acts on normalised tokens.
      center: M excludes the mean direction, which LayerNorm removes from tokens.
      normalize: M is divided by sqrt(head_dim).
      output_value: M is the output-value matrix Wv Wo instead of Wq Wk^T. Such a frame is never plain.
      positions: which interaction M is, if the model has rotary positions; None for all other models. A frame with
        rotary positions is never plain.
    """

    fold_scale: bool = False
    center: bool = False
    normalize: bool = False
    positions: Positions | None = None
    output_value: bool = False

    def in_words(self) -> str:
        """The frame as figures state it, without positions.

        Example:
          >>> Frame().in_words(), Frame(fold_scale=True, center=True, normalize=True).in_words()
          ('plain frame', 'folded and centred frame, M / sqrt(d)')
        """
        kinds = [word for word, used in (("folded", self.fold_scale), ("centred", self.center)) if used]
        return f"{' and '.join(kinds) or 'plain'} frame" + (", M / sqrt(d)" if self.normalize else "")

    def __str__(self) -> str:
        parts = [name for name in ("output_value", "fold_scale", "center", "normalize") if getattr(self, name)]
        if self.positions is not None:
            parts.append(str(self.positions))
        return ", ".join(parts) or "plain"


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
