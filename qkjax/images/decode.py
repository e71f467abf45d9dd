"""Opens image files with Pillow, and checks their headers before any pixel is decoded."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import IOBase
from pathlib import Path

from qkjax.images.limits import check_pixels, from_environment

MAX_SCANS = 100
"""Largest number of scans in a progressive JPEG. Encoders write about 10; each scan may take as long as an image."""


@contextmanager
def opened(file: str | Path | IOBase, most: int | None = None) -> Iterator["PIL.Image.Image"]:
    """An image that is not yet decoded, whose header is within the limits.

    If Pillow does not know the format, the file is tried as HEIC, whatever the name of the file.

    Args:
      file: path of the image, or an open file.
      most: largest number of pixels, besides that of `check_pixels`.

    Raises:
      ValueError: the path is a pipe or device, or the image has too many pixels or scans, or is a program.
      Exception: Pillow's readers raise errors of many types.
    """
    _ignore_warnings()
    _large_blocks()
    if isinstance(file, (str, Path)) and Path(file).exists() and not Path(file).is_file():
        raise ValueError("it is not a file, but a folder, pipe or device")
    with _image(file) as image:
        check_pixels(image.width, image.height, most)
        if image.format == "EPS":
            raise ValueError("it is a PostScript program, not a photograph")
        if image.info.get("progressive") and image.format in ("JPEG", "MPO"):
            _check_scans(image.fp)
        yield image


def _image(file: str | Path | IOBase) -> "PIL.Image.Image":
    from PIL import Image, UnidentifiedImageError

    limit = from_environment("QKJAX_MAX_PIXELS", None)
    if limit and Image.MAX_IMAGE_PIXELS:  # Pillow refuses images of twice its limit by itself
        Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS)
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not register_heif():
            raise
        return Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} (QKJAX_MAX_PIXELS raises this limit)") from error


def _check_scans(file: IOBase) -> None:
    """Counts the scans of a progressive JPEG without decoding them."""
    place, scans, end = file.tell(), 0, b""
    file.seek(0)
    while scans <= MAX_SCANS and (block := file.read(1 << 20)):
        scans += len(re.findall(b"\xff\xda", end + block))
        end = block[-1:]
    file.seek(place)
    if scans > MAX_SCANS:
        raise ValueError(f"its pixels are in more than {MAX_SCANS} scans")


@cache
def register_heif() -> bool:
    """Whether Pillow can read HEIC files, which needs the package pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@cache
def _large_blocks() -> None:
    """Makes Pillow allocate an image as one block, up to 1 GiB.

    The system gets a large block back as soon as an image is closed. glibc keeps smaller ones for each thread, so that
    the memory of images that threads prepared one after the other would add up.
    """
    from PIL import Image

    Image.core.set_block_size(1 << 30)


def _ignore_warnings() -> None:
    """Suppresses warnings about odd metadata of readable images.

    The filter is permanent, because Python's temporary warning filters are not thread-safe: threads that decode at the
    same time would share a temporary filter, and the filter could persist anyway.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
