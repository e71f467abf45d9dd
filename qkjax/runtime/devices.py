"""Arrays on the devices of this host."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_devices(axis: int | None) -> NamedSharding:
    """Sharding that splits arrays along an axis over all devices of this host.

    If `axis` is None, each device gets a full copy.
    """
    devices = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(devices, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch"))
