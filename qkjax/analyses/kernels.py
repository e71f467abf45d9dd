"""The query and key kernels whose interaction is M, for models with and without rotary positions."""

import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.frame import Positions
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.mean import coherence, columns_with_mean, mean_kernels, offset_kernels
from qkjax.interaction.rotary.rotation import Rotation, grid_steps

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]


def kernels_of_modes(parts: QueryKey) -> tuple[Kernel, Kernel]:
    """The query and key kernels whose M `decompose(parts)` decomposes, before they are folded.

    For a model with rotary positions, the product of the kernels is the mean over positions.
    """
    kernels = parts.query_kernel, parts.key_kernel
    return kernels if parts.rotation is None else kernels_at(kernels, parts.rotation, None, None)[0]


def kernels_at(kernels, rotation: Rotation, positions: str | None, offset) -> tuple[tuple, Positions]:
    """The kernels whose interaction is M at the given positions, and a description of these positions."""
    c = tuple(map(float, coherence(rotation.angles)))
    if offset is not None:
        angles = np.asarray(offset, np.float64) @ grid_steps(rotation.angles, rotation.grid)
        kernels = offset_kernels(*kernels, angles, rotation.pairs)
        return kernels, Positions("offset", rotation.grid, c, tuple(offset))
    if positions == "none":
        return kernels, Positions("none", rotation.grid, c)
    used = columns_with_mean(rotation.angles, rotation.pairs)
    with np.errstate(invalid="ignore"):  # kernels that are not finite have modes that are not finite
        kernels = tuple(x[..., used] for x in mean_kernels(*kernels, rotation.angles, rotation.pairs))
    return kernels, Positions("mean", rotation.grid, c)
