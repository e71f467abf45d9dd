"""Arrays on the devices of this host."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_devices(axis: int | None) -> NamedSharding:
    """Sharding that splits arrays along an axis over all devices of this host; None: a full copy on each device."""
    devices = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(devices, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch"))
