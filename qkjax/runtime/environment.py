"""Describes the software and hardware of this process, on which the last bits of a result depend."""

import platform
from importlib.metadata import version

import jax

from qkjax.cores import cores

PACKAGES = ("qkjax", "jax", "jaxlib", "numpy")


def environment() -> dict[str, str | int]:
    """Versions of libraries, the platform, and the devices of all hosts.

    The number of cores is stated only for a CPU: there, XLA and BLAS divide sums over the cores, so that the last bits
    of a sum depend on their number.

    Example:
      >>> environment()["platform"]
      'cpu'
    """
    devices = {"platform": jax.default_backend(), "device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    if devices["platform"] == "cpu":
        devices |= {"machine": platform.machine(), "cores": cores()}
    return devices | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
