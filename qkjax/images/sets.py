"""Image sets and batches. The items of an image set are photographs, scenes with masks, or segmented images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

Item = TypeVar("Item")
Unreadable = tuple[tuple[int, str], ...]
"""The index of each image that could not be read, and the reason."""


@dataclass(frozen=True)
class ImageSet(Generic[Item]):
    """Images in a fixed order, which may have masks.

    Attributes:
      name: name of the set.
      names: names of the images. A name is the path relative to the set, with `/` as separator. For an image in an
        archive, the path starts with the name of the archive, as in "shard.tar/0001.jpg".
      read: function that takes an index and returns a photograph (RGB, upright), a `Scene` or a `Segmented`. The
        function raises QkjaxError for an image that cannot be read, and may be called from several threads.
      fingerprint: a string that changes if the images change.
      left_out: name and reason for each image that is excluded before reading because it has no mask.
      notes: sentences about the search for images, for example the number of files that were skipped.
      is_current: function that returns whether the files are still those from which `fingerprint` was computed.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[int], Item]
    fingerprint: str
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    is_current: Callable[[], bool] = lambda: True

    def __len__(self) -> int:
        return len(self.names)

    def spread(self, count: int) -> tuple["ImageSet[Item]", list[int]]:
        """Returns a set of `count` evenly spaced images of this set, and their indices in this set."""
        indices = [int(i) for i in (np.arange(count) + 0.5) * len(self) / count]
        subset = replace(
            self,
            names=tuple(self.names[i] for i in indices),
            read=lambda index: self.read(indices[index]),
            fingerprint=f"{count} of {self.fingerprint}",
        )
        return subset, indices


class Batch(NamedTuple):
    """A batch of images of the same size. A batch that is not full is padded with black images whose index is -1.

    Attributes:
      pixels: pixels that the model sees, before normalisation. An unreadable image is black.
      masks: share of each patch that each region or object covers; None for a set without masks.
      index: index of each image in the set; -1 for unreadable images and for padding.
      unreadable: index and reason for each image that could not be read.
    """

    pixels: UInt8[np.ndarray, "batch height width 3"]
    masks: Shaped[np.ndarray, "batch ..."] | None
    index: Int32[np.ndarray, "batch"]
    unreadable: Unreadable


def batch_of(group: Sequence[int], results: Sequence[tuple | str], size: int, blank: tuple[np.ndarray, ...]) -> Batch:
    """Makes a batch of `size` images, which is padded if the group is smaller.

    Args:
      group: indices of the images.
      results: for each image, a tuple of its pixels and (in a set with masks) its masks, or the reason, as text, why
        the image cannot be read.
      size: number of images in the batch.
      blank: pixels and masks that replace an unreadable image, and that are used as padding.
    """
    failed = tuple((i, r) for i, r in zip(group, results, strict=True) if isinstance(r, str))
    empty = size - len(group)
    items = [blank if isinstance(r, str) else r for r in results] + [blank] * empty
    index = [-1 if isinstance(r, str) else i for i, r in zip(group, results, strict=True)] + [-1] * empty
    pixels, *masks = (np.stack(part) for part in zip(*items, strict=True))
    return Batch(pixels, masks[0] if masks else None, np.array(index, np.int32), failed)
