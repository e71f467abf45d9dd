"""Places in training: which interaction a constraint applies to if queries and keys rotate with their places.

With rotary positions, tokens at the offset delta interact through M(delta) = Wq R(delta) Wk^T. A constraint applies to
M(0) = Wq Wk^T, the interaction at the same place, or to Mbar = (Wq sqrt c)(Wk sqrt c)^T, the mean over all pairs of
places (see `qkjax.interaction.rotary.mean`). In the second case, the kernels of the constraint are Wq sqrt c and
Wk sqrt c. A constraint that sets Wk = Wq or Wk = -Wq holds for both, because c is the same for both kernels.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.interaction.rotary.mean import coherence, mean_kernels
from qkjax.interaction.rotary.place import place_share
from qkjax.interaction.rotary.rotation import on_columns
from qkjax.results.rows import head_mean
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary import patch_rotation
from qkjax.vit.tree import query_key_kernels

Kernel = Float[Array | np.ndarray, "... embed heads head_dim"]


def constrained_factor(vit: ViTConfig, constrained: str) -> Float[np.ndarray, "1 1 head_dim"] | None:
    """The factor between the kernels of M(0) and the kernels that the constraint applies to: sqrt c of each column.

    The factor is None if the kernels are the same.

    Args:
      vit: architecture of the model.
      constrained: "same-place" or "mean"; see `TrainConfig`.

    Raises:
      QkjaxError: the constraint applies to Mbar, but a plane cancels in the mean, so that Mbar does not determine it.
    """
    if constrained == "same-place" or vit.rotary is None:
        return None
    rotation = patch_rotation(vit, vit.grid)
    root = np.sqrt(coherence(np.asarray(rotation.angles, np.float64)))
    factor = on_columns(root, rotation.pairs).astype(np.float32)[None, None]
    if not factor.all():
        raise QkjaxError(
            f"constrained={constrained!r}: {int((factor == 0).sum())} of {vit.head_dim} columns of a head cancel in "
            f"the mean over the grid {vit.grid}; choose 'same-place', or another grid"
        )
    return factor


def interaction_measures(params: Mapping, vit: ViTConfig) -> dict[str, list[float | None]]:
    """The measures of the interaction in a line of metrics: for each layer the mean over heads, or None if undefined.

    Args:
      params: a plain parameter tree.
      vit: architecture of the model.

    Returns:
      "weighted_cosine" is the mean cosine of the modes, weighted by strength, as in `qkjax analyze`. With rotary
      positions, these are the modes of Mbar; "same_place_cosine" is the same for the modes of M(0), and "place_share"
      is the share of the interaction that depends on place.
    """
    kernels = query_key_kernels(params)
    if vit.rotary is None:
        return {"weighted_cosine": _by_layer(measure(decompose(*kernels)).weighted_cosine)}
    angles, pairs, grid, _ = patch_rotation(vit, vit.grid)
    mean = mean_kernels(*kernels, angles, pairs)
    return {
        "weighted_cosine": _by_layer(measure(decompose(*mean)).weighted_cosine),
        "same_place_cosine": _by_layer(measure(decompose(*kernels)).weighted_cosine),
        "place_share": _by_layer(place_share(*kernels, angles, grid, pairs).share),
    }


def _by_layer(values: Float[Array, "layers heads"]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in head_mean(values)]  # JSON has no NaN
