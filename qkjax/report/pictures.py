"""Small pictures for a page."""

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from qkjax.images.prefetch import ahead, or_reason
from qkjax.images.preprocess import Pixels
from qkjax.images.sets import ImageSet

SIDES = (224, 160, 112, 80, 56, 40)
"""Pixels of the longer side, from fine to coarse."""
SAMPLE = 32


def webp(pixels: Pixels, side: int, quality: int = 75) -> bytes:
    """A picture no larger than `side`, as a file that every browser shows."""
    picture, data = Image.fromarray(np.ascontiguousarray(pixels)), BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(data, "WEBP", quality=quality, method=4)
    return data.getvalue()


def small_pictures(
    images: ImageSet, wanted: Sequence[int], read: Callable[[int], Pixels], room: float
) -> Iterator[tuple[int, bytes]]:
    """Thumbnails of some images of a set, in order, at the finest of `SIDES` at which all of them fit into the room.

    Args:
      read: gives the pixels of an image, and raises QkjaxError where it cannot; such images are left out.
      room: bytes for all of them; foreseen from some, and passed where even the coarsest take more.
    """
    side = _side(images, wanted, read, room)
    for group, made in _made(images, [wanted[i : i + SAMPLE] for i in range(0, len(wanted), SAMPLE)], read, side):
        yield from ((i, x) for i, x in zip(group, made, strict=True) if isinstance(x, bytes))


def _side(images: ImageSet, wanted: Sequence[int], read: Callable[[int], Pixels], room: float) -> int:
    sample = wanted[:: -(-len(wanted) // SAMPLE) or 1]
    for side in SIDES:
        sizes = [len(x) for _, made in _made(images, [sample], read, side) for x in made if isinstance(x, bytes)]
        if not sizes or np.mean(sizes) * len(wanted) <= room:
            return side
    return SIDES[-1]


def _made(images: ImageSet, groups: Sequence[Sequence[int]], read: Callable[[int], Pixels], side: int):
    return ahead(lambda index: or_reason(lambda: webp(read(index), side), images.names[index]), groups)
