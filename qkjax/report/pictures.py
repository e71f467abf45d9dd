"""Makes thumbnails of images for a page."""

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from qkjax.images.prefetch import ahead, or_reason
from qkjax.images.preprocess import Pixels
from qkjax.images.sets import ImageSet

SIDES = (224, 160, 112, 80, 56, 40)
"""Possible lengths in pixels of the longer side of a thumbnail, from fine to coarse."""
SAMPLE = 32


def webp(pixels: Pixels, side: int, quality: int = 75) -> bytes:
    """Reduces a picture so that its longer side has at most `side` pixels, and encodes it as WebP."""
    picture, data = Image.fromarray(np.ascontiguousarray(pixels)), BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(data, "WEBP", quality=quality, method=4)
    return data.getvalue()


def small_pictures(
    images: ImageSet, indices: Sequence[int], read: Callable[[int], Pixels], space: float
) -> Iterator[tuple[int, bytes]]:
    """Yields, for given images of a set, the index and the thumbnail, in order.

    The side of the thumbnails is the largest of `SIDES` for which all thumbnails fit into the space.

    Args:
      images: the image set.
      indices: indices of the images.
      read: function that takes an index and returns pixels. Images for which it raises QkjaxError are left out.
      space: number of bytes for all thumbnails. The size of the thumbnails is estimated from a sample. Thumbnails with
        the smallest side may exceed the space.
    """
    side = _side(images, indices, read, space)
    groups = [indices[i : i + SAMPLE] for i in range(0, len(indices), SAMPLE)]
    for group, thumbnails in _thumbnails(images, groups, read, side):
        yield from ((i, x) for i, x in zip(group, thumbnails, strict=True) if isinstance(x, bytes))


def _side(images: ImageSet, indices: Sequence[int], read: Callable[[int], Pixels], space: float) -> int:
    sample = indices[:: -(-len(indices) // SAMPLE) or 1]
    for side in SIDES:
        sizes = [
            len(x) for _, group in _thumbnails(images, [sample], read, side) for x in group if isinstance(x, bytes)
        ]
        if not sizes or np.mean(sizes) * len(indices) <= space:
            return side
    return SIDES[-1]


def _thumbnails(images: ImageSet, groups: Sequence[Sequence[int]], read: Callable[[int], Pixels], side: int):
    return ahead(lambda index: or_reason(lambda: webp(read(index), side), images.names[index]), groups)
