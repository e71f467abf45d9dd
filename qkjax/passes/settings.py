"""What all passes over images share: batches, devices, and what their results depend on."""

import json
from dataclasses import asdict
from importlib.metadata import version

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qkjax.errors import QkjaxError
from qkjax.weights.checkpoint import Checkpoint, digest_of_parameters


def settings_of(checkpoint: Checkpoint, images, options) -> dict[str, str]:
    """All that a result depends on, as texts: equal settings give equal results.

    Args:
      images: a set of whatever kind, with a fingerprint.
      options: a dataclass, with a field `batch`.
    """
    values = {
        "model": checkpoint.name,
        "parameters": digest_of_parameters(checkpoint.params),
        "config": checkpoint.config.to_dict(),
        "preprocess": asdict(checkpoint.preprocess),
        "images": images.fingerprint,
        **asdict(options),
        "batch": batch_size(options.batch),
        "devices": f"{jax.local_device_count()} {jax.default_backend()}",
        "jax": version("jax"),
        "qkjax": version("qkjax"),
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def batch_groups(count: int, size: int) -> list[range]:
    """The indices of each batch of a set."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def batch_size(asked: int | None) -> int:
    """Images of a batch on the devices of this host, see `ScanOptions`.

    Raises:
      QkjaxError: less than one is asked for.
    """
    if asked is not None and asked < 1:
        raise QkjaxError("--batch is a whole number from 1 up")
    devices = jax.local_device_count()
    wanted = asked or (8 if jax.default_backend() == "cpu" else 64 * devices)
    return -(-wanted // devices) * devices


def over_devices(axis: int | None) -> NamedSharding:
    """Arrays split along an axis over all devices of this host; None: whole on each."""
    devices = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(devices, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch"))
