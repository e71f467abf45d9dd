"""Places the arrays of a training run on one mesh of all devices of all hosts.

Batches are split over the mesh. Parameters are replicated on every device, or are also split over the mesh (FSDP).
"""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")  # a tree of arrays
AXIS = "data"
SPLIT_FROM = 4096
"""Smallest number of values for which splitting an array over devices is worthwhile."""


def mesh() -> Mesh:
    """Returns a mesh of all devices of all hosts, along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def split_rows() -> NamedSharding:
    """The sharding that splits batches along their first axis."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def replicated() -> NamedSharding:
    """The sharding that copies the whole array to every device."""
    return NamedSharding(mesh(), PartitionSpec())


def placement(tree: Tree, parallel: str) -> Tree:
    """The sharding of each array of a tree.

    Args:
      tree: a tree of arrays, or of their shapes.
      parallel: "data" or "fsdp". With "data", every device has all arrays. With "fsdp", an array with at least
        `SPLIT_FROM` values is split along its longest axis whose length is a multiple of the number of devices.
    """

    def sharding(leaf) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh().size == 0]
        if parallel == "data" or leaf.size < SPLIT_FROM or not axes:
            return replicated()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh(), PartitionSpec(*(AXIS if axis == longest else None for axis in range(leaf.ndim))))

    return jax.tree.map(sharding, tree)


def distribute(batch: Tree) -> Tree:
    """Assembles, from the rows of each host, a batch that is split over all devices."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split_rows(), rows), batch)
