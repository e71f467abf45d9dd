"""Checks the parameters of a torch model: the number of axes, and the sizes that its configuration states."""

from collections.abc import Mapping

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig
from qkjax.weights.families.big_vision_names import BLOCK
from qkjax.weights.families.facts import Facts

RANKS = {"kernel": 2, "bias": 1, "scale": 1}
"""A dict from the last part of a parameter's canonical name to the expected number of axes."""


def check_ranks(flat: Mapping[str, np.ndarray], keys: Mapping[str, str]) -> None:
    """Checks the number of axes of every parameter of a layer.

    Args:
      flat: a dict from canonical names to arrays.
      keys: a dict from canonical names to names in the file, for the error message.

    Raises:
      QkjaxError: a parameter has a different number of axes.
    """
    for name, array in flat.items():
        rank = RANKS.get(name.rsplit("/", 1)[-1]) if name.startswith(BLOCK) else None
        if rank and array.ndim != rank:
            raise QkjaxError(f"parameter {keys.get(name, name)!r} has shape {array.shape}, expected {rank} axes")


def check_stated_sizes(config: ViTConfig, facts: Facts) -> None:
    """Checks that the parameters have the sizes that config.json states.

    Raises:
      QkjaxError: the sizes differ, so config.json and the parameters belong to different models.
    """
    stated, runs = facts.stated_sizes, not config.weights_only
    actual = {"hidden_size": [config.width], "num_hidden_layers": [config.depth]}
    if runs:
        gated = config.mlp_dim // 2 if config.activation == "swiglu" else config.mlp_dim
        actual |= {"intermediate_size": [config.mlp_dim, gated], "patch_size": [config.patch_size]}
    for name, values in actual.items():
        if name in stated and stated[name] not in values:
            raise QkjaxError(
                f"config.json has {name}={stated[name]}, but the parameters have {values[0]}: they belong to different "
                "models"
            )
    if runs and config.grid and not facts.grid_is_given and config.posemb == "learn":
        rows, columns = (n * size for n, size in zip(config.grid, config.patch_size, strict=True))
        height, width = (n + size for n, size in zip((rows, columns), config.patch_size, strict=True))
        image = stated.get("image_size", (rows, columns))
        if not (rows <= image[0] < height and columns <= image[1] < width):
            raise QkjaxError(
                f"config.json has image_size={image}, but the position embedding has {config.grid} patches of "
                f"{config.patch_size} pixels: pass grid={config.grid}, unless they belong to different models"
            )
