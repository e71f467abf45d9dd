"""Where a run's arrays lie: one mesh of all devices of all hosts, batches split over it, parameters copied to
each device or split too (FSDP)."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")  # of arrays
AXIS = "data"
WORTH = 4096
"""Numbers from which on an array is worth splitting."""


def mesh() -> Mesh:
    """All devices of all hosts, in one row."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def split() -> NamedSharding:
    """By the first axis, as batches are."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def copied() -> NamedSharding:
    """The whole on every device."""
    return NamedSharding(mesh(), PartitionSpec())


def placement(tree: Tree, parallel: str) -> Tree:
    """How each array of a tree lies on the devices.

    Args:
      tree: of arrays, or of their shapes.
      parallel: "data": all on each device; "fsdp": arrays of `WORTH` numbers and more are split along their
        longest axis that the devices divide.
    """

    def of(leaf) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh().size == 0]
        if parallel == "data" or leaf.size < WORTH or not axes:
            return copied()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh(), PartitionSpec(*(AXIS if axis == longest else None for axis in range(leaf.ndim))))

    return jax.tree.map(of, tree)


def spread(batch: Tree) -> Tree:
    """A batch over all devices, from this host's rows of it."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split(), rows), batch)
