"""Converts the first layer of gated MLPs, whose gate and value torch models store together or separately."""

from collections.abc import Mapping

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.families.big_vision_names import BLOCK


def join_gated(flat: dict[str, np.ndarray]) -> None:
    """Concatenates the gate and the value in the first layer of a gated MLP if they are stored separately.

    Values without gates are the first layer of an MLP that is not gated (DINOv3 in transformers).

    Raises:
      QkjaxError: a gate has no value.
    """
    for name in [n for n in flat if "/MlpBlock_0/value/" in n and n.replace("/value/", "/gate/") not in flat]:
        flat[name.replace("/value/", "/Dense_0/")] = flat.pop(name)
    for name in [n for n in flat if "/gate/" in n]:
        value = name.replace("/gate/", "/value/")
        if value not in flat:
            raise QkjaxError(f"parameter {value!r} is missing next to {name!r}")
        flat[name.replace("/gate/", "/Dense_0/")] = np.concatenate([flat.pop(name), flat.pop(value)])


def is_gated(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the second layer of the MLP has half as many inputs as the first has outputs."""
    first, second = (shapes.get(f"{BLOCK}_0/MlpBlock_0/Dense_{i}/kernel", ()) for i in (0, 1))
    return len(first) == len(second) == 2 and first[1] == 2 * second[0]
