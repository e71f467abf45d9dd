"""Reads and resizes images and stacks them into batches, in threads, while the model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from qkjax.cores import cores
from qkjax.errors import QkjaxError
from qkjax.images.memory import PIXELS, UNPACKED
from qkjax.images.preprocess import Preprocess, Resolution, picture, side_lengths
from qkjax.images.sets import Batch, ImageSet, Item, batch_of

Result = TypeVar("Result")

WINDOW = 2  # number of batches that are decoded ahead; memory use does not grow with the number of images


def ahead(
    prepare: Callable[[int], Result], groups: Iterable[Sequence[int]]
) -> Iterator[tuple[Sequence[int], list[Result]]]:
    """Yields each group of indices, in order, with the results of `prepare` for the indices of the group.

    Other threads compute the results of the next groups ahead of time. `qkjax.images.memory` limits the memory of the
    images that they prepare at the same time.
    """

    def within_limits(index: int) -> Result:
        with UNPACKED.shared(), PIXELS.shared():
            return prepare(index)

    remaining, waiting = iter(groups), deque()
    # Threads suffice, since Pillow, numpy and SciPy release the global interpreter lock while they decode and resize:
    # Python itself takes 0.1 ms of the 2 to 3 ms of CPU time for a photograph of 500 x 375 pixels.
    with ThreadPoolExecutor(cores()) as pool:
        try:
            while True:
                for group in islice(remaining, WINDOW - len(waiting)):
                    waiting.append((group, [pool.submit(within_limits, index) for index in group]))
                if not waiting:
                    return
                group, futures = waiting.popleft()
                yield group, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def or_reason(compute: Callable[[], Result], name: str) -> Result | str:
    """The result of `compute`, or the error message if `compute` fails because of invalid input or lack of memory."""
    try:
        return compute()
    except QkjaxError as error:
        return str(error)
    except MemoryError:
        return f"{name} does not fit into memory; reduce the size of the image"


def batches(
    images: ImageSet[Item],
    groups: Iterable[Sequence[int]],
    size: int,
    prepare: Callable[[Item, str], tuple[np.ndarray, ...]],
    blank: tuple[np.ndarray, ...],
) -> Iterator[Batch]:
    """Yields a batch of `size` images for each group of indices, in order.

    Args:
      images: the image set.
      groups: groups of at most `size` indices of images.
      size: number of images in a batch.
      prepare: function that takes an item of the image set and the item's name, and returns its pixels and, in a set
        with masks, its masks. The function raises QkjaxError if the item cannot be used.
      blank: pixels and masks that replace a missing image.
    """

    def prepared(index: int) -> tuple[np.ndarray, ...] | str:
        return or_reason(lambda: prepare(images.read(index), images.names[index]), images.names[index])

    for group, results in ahead(prepared, groups):
        yield batch_of(group, results, size, blank)


def photograph_batches(
    images: ImageSet, groups: Iterable[Sequence[int]], size: int, preset: Preprocess, resolution: Resolution | None
) -> Iterator[Batch]:
    """Yields batches of photographs without masks. `preset` and `resolution` are arguments of `picture`."""
    blank = (np.zeros((*side_lengths(preset, resolution), 3), np.uint8),)
    return batches(images, groups, size, lambda item, _: (picture(item, preset, resolution),), blank)
