"""The kernels whose interaction is that of the positions that the caller of `qkjax.decompose` chooses."""

import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.frame import Positions
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.mean import Kernel, coherence, columns_with_mean, mean_kernels, offset_kernels
from qkjax.interaction.rotary.rotation import Rotation, grid_steps

Columns = Float[Array | np.ndarray, "layers embed heads columns"]


def check_positions(
    rotation: Rotation | None, positions: str | None, offset: tuple[int, ...] | None, grid: tuple[int, ...] | None
) -> None:
    """Checks the arguments of `qkjax.decompose` that choose the positions of queries and keys.

    Raises:
      QkjaxError: an argument is invalid or does not apply.
    """
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
    if offset is not None and rotation.window is not None:
        raise QkjaxError(
            f"offset={offset}: in a grid of several windows, one step rotates by different angles in different layers: "
            f"pass grid={tuple(rotation.window)}, a single window"
        )


def kernels_at(
    kernels: tuple[Kernel, Kernel], rotation: Rotation, positions: str | None, offset: tuple[int, ...] | None
) -> tuple[tuple[Columns, Columns], Positions]:
    """The kernels whose interaction is M at the given positions, and a description of these positions.

    Args:
      kernels: query and key kernels, before the rotation.
      rotation: the rotation of a grid.
      positions, offset: see `qkjax.decompose`.
    """
    c = np.asarray(coherence(rotation.angles))
    c = tuple(map(float, c)) if rotation.window is None else tuple(tuple(map(float, own[0])) for own in c)
    if offset is not None:
        angles = np.asarray(offset, np.float64) @ grid_steps(rotation.angles, rotation.grid)
        kernels = offset_kernels(*kernels, angles, rotation.pairs)
        return kernels, Positions("offset", rotation.grid, c, tuple(offset))
    if positions == "none":
        return kernels, Positions("none", rotation.grid, c, window=rotation.window)
    used = columns_with_mean(rotation.angles, rotation.pairs)
    with np.errstate(invalid="ignore"):  # kernels that are not finite have modes that are not finite
        kernels = tuple(x[..., used] for x in mean_kernels(*kernels, rotation.angles, rotation.pairs))
    return kernels, Positions("mean", rotation.grid, c, window=rotation.window)


def kernels_of_modes(parts: QueryKey) -> tuple[Columns, Columns]:
    """The query and key kernels whose M `qkjax.decompose(parts)` decomposes, before they are folded.

    For a model with rotary positions, the product of the kernels is the mean over positions.
    """
    kernels = parts.query_kernel, parts.key_kernel
    return kernels if parts.rotation is None else kernels_at(kernels, parts.rotation, None, None)[0]
