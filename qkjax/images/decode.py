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
    """Opens an image without decoding it, and checks that its header is within the limits.

    If Pillow does not know the format, the function tries HEIC, regardless of the file name.

    Args:
      file: path of the image, or an open file.
      most: largest number of pixels, in addition to the limit of `check_pixels`.

    Raises:
      ValueError: the path is a pipe or device, or the image has too many pixels or scans, or is a PostScript program.
      Exception: Pillow's readers raise many types of errors.
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
    if limit and Image.MAX_IMAGE_PIXELS:  # Pillow itself rejects images with twice its limit
        Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS)
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not register_heif():
            raise
        return Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} (set QKJAX_MAX_PIXELS to raise this limit)") from error


def _check_scans(file: IOBase) -> None:
    """Counts the scans of a progressive JPEG without decoding them."""
    place, scans, end = file.tell(), 0, b""
    file.seek(0)
    while scans <= MAX_SCANS and (block := file.read(1 << 20)):
        scans += len(re.findall(b"\xff\xda", end + block))
        end = block[-1:]
    file.seek(place)
    if scans > MAX_SCANS:
        raise ValueError(f"it has more than {MAX_SCANS} scans")


@cache
def register_heif() -> bool:
    """Registers HEIC with Pillow if pillow-heif is installed; returns whether Pillow can read HEIC files."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@cache
def _large_blocks() -> None:
    """Makes Pillow allocate an image as one block, up to 1 GiB.

    A large block is returned to the operating system as soon as the image is closed. glibc would keep smaller blocks
    for each thread, so the memory of images that were prepared one after the other would add up.
    """
    from PIL import Image

    Image.core.set_block_size(1 << 30)


def _ignore_warnings() -> None:
    """Suppresses warnings about odd metadata of readable images.

    The filter is permanent, because Python's temporary warning filters are not thread-safe: threads that decode at the
    same time would share a temporary filter, and the filter could persist anyway.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
