"""Placement of a run's arrays on one mesh of all devices of all hosts. Batches are split over the mesh; parameters are
replicated on every device, or split as well (FSDP)."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")  # a tree of arrays
AXIS = "data"
SPLIT_FROM = 4096
"""Smallest number of values for which splitting an array is worthwhile."""


def mesh() -> Mesh:
    """All devices of all hosts, along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def split_rows() -> NamedSharding:
    """The sharding of batches: split along the first axis."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def replicated() -> NamedSharding:
    """The sharding that has the whole array on every device."""
    return NamedSharding(mesh(), PartitionSpec())


def placement(tree: Tree, parallel: str) -> Tree:
    """The sharding of each array of a tree.

    Args:
      tree: a tree of arrays, or of their shapes.
      parallel: "data": every device has all arrays. "fsdp": arrays with at least `SPLIT_FROM` values are split along
        their longest axis whose length is a multiple of the number of devices.
    """

    def sharding(leaf) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh().size == 0]
        if parallel == "data" or leaf.size < SPLIT_FROM or not axes:
            return replicated()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh(), PartitionSpec(*(AXIS if axis == longest else None for axis in range(leaf.ndim))))

    return jax.tree.map(sharding, tree)


def distribute(batch: Tree) -> Tree:
    """A batch on all devices, from this host's rows of it."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split_rows(), rows), batch)
