"""Checks the parameters of a torch model: the number of axes, and the sizes that its configuration states."""

from collections.abc import Mapping

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig
from qkjax.weights.families.big_vision_names import BLOCK
from qkjax.weights.families.facts import Facts
from qkjax.weights.families.torch_names import ATTENTION

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


def check_rotation_is_stated(flat: Mapping[str, np.ndarray], facts: Facts) -> None:
    """Refuses parameters of Perception Encoder and EVA-02 if no source states their rotary positions.

    These models have learned position embeddings, so that without this check, qkjax would read them as models without
    rotary positions. Perception Encoder (and SAM 3, which is based on it) has a norm before the first layer and
    attention pooling, or no norm after the last layer. EVA-02 has gated MLPs, and either norms inside the MLPs or
    queries with a bias and keys without one.

    Args:
      flat: a dict from canonical names to arrays, before missing biases are added.
      facts: facts about the model.

    Raises:
      QkjaxError: the parameters resemble one of these models, and neither a file nor the caller states the rotation.
    """
    if facts.complete or "rotary" in facts.settings:
        return
    family, first = "", f"{BLOCK}_0/"
    norms = {"Transformer/encoder_norm/scale", "pool_norm/scale"}
    if "pre_norm/scale" in flat and ("MAPHead_0/probe" in flat or not norms & set(flat)):
        family = "Perception Encoder or SAM 3"
    if f"{first}mlp_norm/scale" in flat and f"{first}MlpBlock_0/gate/kernel" in flat:
        family = "EVA-02"
    biased = {part for part in ("query", "key") if f"{first}{ATTENTION}/{part}/bias" in flat}
    sizes = [flat.get(f"{first}MlpBlock_0/Dense_{i}/kernel", np.empty(())).shape for i in (0, 1)]
    if biased == {"query"} and all(sizes) and sizes[0][0] == 2 * sizes[1][1]:
        family = "EVA-02"
    if family:
        raise QkjaxError(
            f"the parameters resemble {family}, whose rotary positions no parameter states: add the model's "
            "config.json, or pass rotary=qkjax.Rotary(...) (and window=... for SAM 3), or rotary=None if it has none"
        )


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
