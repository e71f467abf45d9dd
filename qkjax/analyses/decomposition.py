"""Computes the modes and the bias terms of a checkpoint in memory."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Array, Float

from qkjax.analyses.kernels import Kernel, kernels_at
from qkjax.errors import QkjaxError
from qkjax.interaction import bias, modes
from qkjax.interaction.bias import BiasTerms
from qkjax.interaction.frame import fold
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.mean import columns_with_mean
from qkjax.interaction.rotary.rotation import Rotation
from qkjax.passes.inputs import resolution_of
from qkjax.vit import tree
from qkjax.vit.config import ViTConfig
from qkjax.vit.model import patch_grid
from qkjax.vit.rotary import patch_rotation
from qkjax.weights.checkpoint import Checkpoint


def decompose(
    checkpoint: Checkpoint | QueryKey | Kernel,
    key_kernel: Kernel | None = None,
    *,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
    positions: str | None = None,
    offset: tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
) -> Modes:
    """Computes the singular modes of M = Wq Wk^T for all layers and heads (the paper, section 2.2).

    For a model with rotary positions, M is by default the mean of Wq R(delta) Wk^T over all pairs of places of a grid;
    see `qkjax.interaction.rotary`.

    Args:
      checkpoint: a checkpoint, its `QueryKey`, or an array of query kernels (layers, embed, heads, head_dim).
      key_kernel: key kernels of the same shape, if `checkpoint` is an array of query kernels.
      fold_scale: include the LayerNorm scale g in M. The modes are then those of diag(g) M diag(g), which acts on
        normalised tokens. Not allowed if kernels are given.
      center: also remove the mean direction, as LayerNorm does. The modes are then those of C diag(g) M diag(g) C,
        where C = I - 11^T / D. Requires `fold_scale`, unless kernels are given.
      normalize: divide M by sqrt(head_dim), so that strengths have the units of attention logits.
      norm_scale: the LayerNorm scale g (layers, embed) to include in M; allowed only if kernels are given.
      positions: for a model with rotary positions, "mean" (the default), or "none" for M = Wq Wk^T, the interaction of
        tokens that are not rotated.
      offset: for a model with rotary positions, the rows and columns from the key to the query; M is then the
        interaction at this offset.
      grid: for a checkpoint with rotary positions, rows and columns of patches; by default the checkpoint's own grid.

    Returns:
      `Modes`: u and v of shape (layers, heads, embed, rank), s of shape (layers, heads, rank), and the frame of M.
      `qkjax.interaction.modes.decompose` documents the accuracy. For the mean over places, planes with c = 0 have no
      modes, so that rank is two times the number of the other planes.

    Raises:
      QkjaxError: the kernels have invalid shapes, `fold_scale` is set although kernels are given, or `center` is set
        although `fold_scale` is not or although the model has RMSNorm; or `positions`, `offset` or `grid` do not apply.

    Example:
      >>> import qkjax
      >>> modes = qkjax.decompose(qkjax.load("dinov2-vits14-focus"))
      >>> modes.u.shape, modes.s.shape
      ((12, 6, 384, 64), (12, 6, 64))
    """
    if isinstance(checkpoint, Checkpoint):
        checkpoint, grid = query_key(checkpoint, grid), None
    rotation = checkpoint.rotation if isinstance(checkpoint, QueryKey) else None
    _check_positions(rotation, positions, offset, grid)
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
    how = {"norm_scale": scale, "center": center, "normalize": normalize}
    if rotation is None:
        return modes.decompose(*kernels, **how)
    kernels, described = kernels_at(kernels, rotation, positions, offset)
    columns, head_dim = kernels[0].shape[-1], checkpoint.query_kernel.shape[-1]
    if normalize and columns < head_dim:  # the function divides by the root of the number of columns
        kernels = (kernels[0] * np.sqrt(columns / head_dim).astype(np.float32), kernels[1])
    result = modes.decompose(*kernels, **how)
    return replace(result, frame=replace(result.frame, positions=described))


def query_key(checkpoint: Checkpoint | Mapping, grid: tuple[int, int] | None = None) -> QueryKey:
    """Stacks the query and key parameters of all layers, in float32.

    Args:
      checkpoint: a checkpoint, or a parameter tree. A parameter tree does not describe rotary positions, so `rotation`
        is then None.
      grid: rows and columns of patches for `rotation`, for a checkpoint with rotary positions. The default is the grid
        of the position embedding, or else that of an image at the checkpoint's own resolution.

    Raises:
      QkjaxError: the tree is not that of a ViT, or `grid` is invalid or does not apply.

    Example:
      >>> import qkjax
      >>> qkjax.query_key(qkjax.load("dinov2-vits14-focus")).key_bias.shape
      (12, 6, 64)
    """
    config = checkpoint.config if isinstance(checkpoint, Checkpoint) else None
    check_grid(config, grid)
    if config is None:
        return tree.query_key(checkpoint)
    parts = tree.query_key(checkpoint.params)
    if config.rotary is None:
        return parts
    return parts._replace(rotation=_rotation(checkpoint, grid))


def _rotation(checkpoint: Checkpoint, grid: tuple[int, int] | None = None) -> Rotation:
    config = checkpoint.config
    return patch_rotation(config, grid or config.grid or patch_grid(config, resolution_of(checkpoint, None)))


def modes_per_head(checkpoint: Checkpoint) -> int:
    """The number of modes of each head in `decompose(checkpoint)`, without decomposing anything."""
    config, columns = checkpoint.config, checkpoint.config.head_dim
    if config.rotary is not None:
        rotation = _rotation(checkpoint)
        columns = len(columns_with_mean(rotation.angles, rotation.pairs))
    return min(config.width, columns)


def check_grid(config: ViTConfig | None, grid: tuple[int, int] | None, name: str = "grid", least: int = 1) -> None:
    """Checks that a grid, if given, is valid, and that the model has rotary positions, to which it applies.

    Args:
      config: the model's configuration, if known.
      grid: rows and columns of patches.
      name: name of the argument, for the error message.
      least: smallest number of patches.

    Raises:
      QkjaxError: the grid is invalid or does not apply.
    """
    if grid is not None and (config is None or config.rotary is None):
        raise QkjaxError(f"{name}={grid} applies only to a checkpoint with rotary positions: do not pass {name}=...")
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise QkjaxError(f"{name}={grid}: expected two positive whole numbers, rows and columns")
    if grid is not None and grid[0] * grid[1] < least:
        raise QkjaxError(f"{name}={grid}: expected at least {least} patches, such as (14, 14)")


def folded_kernels(parts: QueryKey, fold_scale: bool, center: bool) -> tuple[Kernel, Kernel]:
    """The query and key kernels of all layers in the frame of M, without the factor 1 / sqrt(head_dim)."""
    scales = parts.norm_scale if fold_scale else [None] * len(parts.norm_scale)
    query, key = (
        np.stack([fold(kernel, scale, center) for kernel, scale in zip(kernels, scales, strict=True)])
        for kernels in (parts.query_kernel, parts.key_kernel)
    )
    return query, key


def _check_positions(rotation: Rotation | None, positions: str | None, offset, grid) -> None:
    inapplicable = {"grid": grid}  # a `QueryKey` has a grid
    if rotation is None:
        inapplicable = {"positions": positions, "offset": offset, **inapplicable}
    for name, value in inapplicable.items():
        if value is not None:
            raise QkjaxError(f"{name}={value!r} applies only to a checkpoint with rotary positions: do not pass it")
    if positions not in (None, "mean", "none"):
        raise QkjaxError(f"positions={positions!r}: expected 'mean' or 'none'")
    if offset is not None and positions is not None:
        raise QkjaxError(f"decompose received positions={positions!r} and offset={offset}: pass only one of them")
    if offset is not None and (
        len(offset) != len(rotation.grid) or any(abs(o) >= n for o, n in zip(offset, rotation.grid, strict=True))
    ):
        shape = " x ".join(map(str, rotation.grid))
        raise QkjaxError(f"offset={offset}: expected rows and columns between two places of the {shape} grid")


def frame_attrs(modes: Modes) -> dict[str, str]:
    """The attribute of a dataset that states which interaction the modes of a model with rotary positions are those of.

    The dict is empty for all other models.
    """
    return {} if modes.frame.positions is None else {"modes": str(modes.frame)}


def bias_terms(checkpoint: Checkpoint | QueryKey) -> BiasTerms:
    """Computes the terms that the query and key biases add to the attention logits; see `BiasTerms`.

    Example:
      >>> import qkjax
      >>> terms = qkjax.bias_terms(qkjax.load("dinov2-vits14-focus"))
      >>> terms.key_direction.shape
      (12, 6, 384)
    """
    parts = query_key(checkpoint) if isinstance(checkpoint, Checkpoint) else checkpoint
    if parts.rotation is not None:
        raise QkjaxError(
            "bias_terms received a model with rotary positions, whose bias terms depend on the positions: use "
            "qkjax.interaction.rotary.bias"
        )
    return bias.bias_terms(parts)


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
