"""Images read, resized and stacked into batches by other threads while the model computes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Preprocess, Resolution, picture, side_lengths
from qkjax.images.sources import ImageSet

Made = TypeVar("Made")

WINDOW = 2  # batches decoded ahead: memory stays the same however many images there are


class Batch(NamedTuple):
    """Images of one size; a batch that is not full ends in black images with index -1.

    Attributes:
      pixels: as the model sees them, before normalisation; black where unreadable.
      index: in the set; -1 where unreadable or not there.
      unreadable: index and reason of those that could not be read.
    """

    pixels: UInt8[np.ndarray, "batch height width 3"]
    index: Int32[np.ndarray, "batch"]
    unreadable: tuple[tuple[int, str], ...]


def ahead(
    prepare: Callable[[int], Made], groups: Iterable[Sequence[int]]
) -> Iterator[tuple[Sequence[int], list[Made]]]:
    """Each group of indices, in order, with what `prepare` makes of each; other threads make it beforehand."""
    remaining, waiting = iter(groups), deque()
    # Threads do: Pillow decodes and resizes outside Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            while True:
                for group in islice(remaining, WINDOW - len(waiting)):
                    waiting.append((group, [pool.submit(prepare, index) for index in group]))
                if not waiting:
                    return
                group, futures = waiting.popleft()
                yield group, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def or_reason(make: Callable[[], Made], name: str) -> Made | str:
    """What is made, or the reason why it cannot be."""
    try:
        return make()
    except QkjaxError as error:
        return str(error)
    except MemoryError:
        return f"{name} does not fit in memory; make it smaller"


def batches(
    images: ImageSet, groups: Iterable[Sequence[int]], size: int, preset: Preprocess, resolution: Resolution | None
) -> Iterator[Batch]:
    """A batch of `size` for each group of at most as many indices, in order.

    Args:
      preset, resolution: as `picture` takes them.
    """
    black = np.zeros((*side_lengths(preset, resolution), 3), np.uint8)

    def prepare(index: int) -> np.ndarray | str:
        return or_reason(lambda: picture(images.read(index), preset, resolution), images.names[index])

    for group, results in ahead(prepare, groups):
        (pixels,), index, failed = stack(group, [r if isinstance(r, str) else (r,) for r in results], size, (black,))
        yield Batch(pixels, index, failed)


def stack(
    group: Sequence[int], results: Sequence[tuple | str], size: int, nothing: tuple
) -> tuple[tuple[np.ndarray, ...], Int32[np.ndarray, "batch"], tuple[tuple[int, str], ...]]:
    """A batch of `size`: what was made of each index, part by part, and `nothing` in place of what could not be made
    or is not there; the indices, -1 there; index and reason of what could not be made."""
    found = list(zip(group, results, strict=True))
    failed = tuple((i, r) for i, r in found if isinstance(r, str))
    empty = size - len(group)
    made = [nothing if isinstance(r, str) else r for _, r in found] + [nothing] * empty
    index = np.array([-1 if isinstance(r, str) else i for i, r in found] + [-1] * empty, np.int32)
    return tuple(np.stack(part) for part in zip(*made, strict=True)), index, failed
