"""Defines the options that all passes over images share."""

from dataclasses import dataclass
from typing import Literal

import jax

from qkjax.errors import QkjaxError


@dataclass(frozen=True)
class PassOptions:
    """Options of a pass over images.

    Attributes:
      batch: number of images per batch, which is rounded up to a multiple of the number of devices. If None, the batch
        has 8 images on a CPU, where larger batches overflow the caches, and 64 images per device on accelerators.
      resolution: (height, width) of the images in pixels; if None, the checkpoint's own resolution.
      dtype: floating-point format of the forward pass. Projections, scores and measures are always float32.
      shard: (index, count) to compute only the share `index`, counted from 0, of `count` shares of the pass. The shares
        run independently; see `ShardFinished`. The result does not depend on `shard`.

    Example:
      >>> PassOptions(batch=16, resolution=(224, 224))
      PassOptions(batch=16, resolution=(224, 224), dtype='float32', shard=None)
    """

    batch: int | None = None
    resolution: tuple[int, int] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard: tuple[int, int] | None = None

    def __post_init__(self):
        """Checks the attribute `shard`.

        Raises:
          QkjaxError: `shard` is not a valid share.
        """
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise QkjaxError(
                f"shard={self.shard[0]}/{self.shard[1]}: expected the index of a share (counted from 0) and the "
                "number of shares, such as 0/8 to 7/8"
            )


def batch_size(requested: int | None, images: int | None = None) -> int:
    """The number of images per batch on the devices of this host; see `PassOptions`.

    Args:
      requested: the option `batch`.
      images: number of images in the set. A batch that is larger than the default is reduced to the size of the set.

    Raises:
      QkjaxError: `requested` is less than 1.
    """
    if requested is not None and requested < 1:
        raise QkjaxError(f"batch={requested}: expected a whole number of at least 1")
    devices = jax.local_device_count()
    default = 8 if jax.default_backend() == "cpu" else 64 * devices
    size = requested or default
    size = size if images is None else min(size, max(default, images))
    return -(-size // devices) * devices
