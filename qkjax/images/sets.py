"""Image sets and batches, of photographs, scenes with masks, or segmented images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

Item = TypeVar("Item")
Unreadable = tuple[tuple[int, str], ...]
"""Index and reason of every image that could not be read."""


@dataclass(frozen=True)
class ImageSet(Generic[Item]):
    """Images in a fixed order, each with its masks if it has any.

    Attributes:
      name: name of the set.
      names: names of the images: paths relative to the set, with `/`; "shard.tar/0001.jpg" within an archive.
      read: takes an index and returns a photograph (RGB, upright), a `Scene` or a `Segmented`. Raises QkjaxError for
        an image that cannot be read. May be called from several threads.
      fingerprint: a text that changes if the images change.
      left_out: name and reason of each image that is excluded before reading because it lacks a mask.
      notes: sentences on the listing, such as how many files were passed over.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[int], Item]
    fingerprint: str
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def spread(self, count: int) -> tuple["ImageSet[Item]", list[int]]:
        """A set of `count` evenly spaced images; and their indices in this set."""
        indices = [int(i) for i in (np.arange(count) + 0.5) * len(self) / count]
        subset = replace(
            self,
            names=tuple(self.names[i] for i in indices),
            read=lambda index: self.read(indices[index]),
            fingerprint=f"{count} of {self.fingerprint}",
        )
        return subset, indices


class Batch(NamedTuple):
    """Images of one size. A batch that is not full ends in black images with index -1.

    Attributes:
      pixels: pixels that the model sees, before normalisation; black for an unreadable image.
      masks: share of each patch that each region or object covers; None for a set without masks.
      index: index of each image in the set; -1 for an image that is unreadable or missing.
      unreadable: index and reason of images that could not be read.
    """

    pixels: UInt8[np.ndarray, "batch height width 3"]
    masks: Shaped[np.ndarray, "batch ..."] | None
    index: Int32[np.ndarray, "batch"]
    unreadable: Unreadable


def batch_of(group: Sequence[int], results: Sequence[tuple | str], size: int, blank: tuple[np.ndarray, ...]) -> Batch:
    """A batch of `size` images.

    Args:
      group: indices of the images.
      results: for each image its pixels and, in a set with masks, its masks; or the reason why it cannot be read.
      blank: pixels and masks of an image that is unreadable or missing.
    """
    failed = tuple((i, r) for i, r in zip(group, results, strict=True) if isinstance(r, str))
    empty = size - len(group)
    items = [blank if isinstance(r, str) else r for r in results] + [blank] * empty
    index = [-1 if isinstance(r, str) else i for i, r in zip(group, results, strict=True)] + [-1] * empty
    pixels, *masks = (np.stack(part) for part in zip(*items, strict=True))
    return Batch(pixels, masks[0] if masks else None, np.array(index, np.int32), failed)
