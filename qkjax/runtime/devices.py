"""Distributes arrays over the devices of this host."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def free_bytes() -> int:
    """The free memory in bytes of this host's fullest device; 0 if a device, such as a CPU, does not report it."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return min(one["bytes_limit"] - one["bytes_in_use"] if one and "bytes_limit" in one else 0 for one in stats)


def over_devices(axis: int | None) -> NamedSharding:
    """Returns a sharding that splits arrays along an axis over all devices of this host.

    If `axis` is None, each device gets a full copy.
    """
    devices = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(devices, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch"))
