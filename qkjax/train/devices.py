"""How a run's arrays are placed: one mesh of all devices of all hosts; batches are split over it, parameters are
replicated on each device or split too (FSDP)."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")  # of arrays
AXIS = "data"
SPLIT_FROM = 4096
"""Smallest number of values for which splitting an array pays."""


def mesh() -> Mesh:
    """All devices of all hosts, in one row."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def split_rows() -> NamedSharding:
    """Split along the first axis, as batches are."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def replicated() -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh(), PartitionSpec())


def placement(tree: Tree, parallel: str) -> Tree:
    """The sharding of each array of a tree.

    Args:
      tree: of arrays, or of their shapes.
      parallel: "data": all arrays on each device; "fsdp": arrays of `SPLIT_FROM` values or more are split along their
        longest axis that is a multiple of the number of devices.
    """

    def of(leaf) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh().size == 0]
        if parallel == "data" or leaf.size < SPLIT_FROM or not axes:
            return replicated()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh(), PartitionSpec(*(AXIS if axis == longest else None for axis in range(leaf.ndim))))

    return jax.tree.map(of, tree)


def distribute(batch: Tree) -> Tree:
    """A batch over all devices, from this host's rows of it."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split_rows(), rows), batch)
