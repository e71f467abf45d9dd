"""Lists the images of zip and tar files without unpacking them, and reads single images."""

import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from qkjax.errors import QkjaxError
from qkjax.images.fingerprint import Part, part_of_range, part_with_checksum
from qkjax.images.memory import UNPACKED
from qkjax.images.preprocess import open_image
from qkjax.images.tar import list_members

MAX_BYTES = 1 << 28  # limit for one image in an archive, because a small archive may unpack to any size
MAX_DIRECTORY = 1 << 28  # limit for the directory of a zip file in bytes, about 3 million images
ZIP64_COUNT = 0xFFFF  # means that the number of entries is in another record
OPEN_ARCHIVES = 64  # number of zip files that stay open; opening a zip file again for each image would be slow


class Listed(NamedTuple):
    """An image that has been listed but not yet read.

    Attributes:
      name: name of the image in the set.
      size: number of bytes of the unpacked file.
      read: function that returns the image.
      part: the part of the image that the set's fingerprint covers.
    """

    name: str
    size: int
    read: Callable[[], "PIL.Image.Image"]
    part: Part


def images_in_zip(path: Path, name: str, is_image: Callable[[str], bool]) -> Iterator[Listed]:
    """Yields the images of a zip file.

    Raises:
      QkjaxError: the file cannot be listed, or its entries overlap.
    """
    stat = path.stat()
    try:
        stated = _stated_count(path)
        listed = _zip(path, stat.st_mtime_ns).infolist()
        if stated not in (len(listed), ZIP64_COUNT):
            raise ValueError(f"its directory has {len(listed)} entries, but states {stated}")
        if sum(info.compress_size for info in listed) > stat.st_size:
            raise ValueError("its entries overlap")
    except OSError:
        raise
    except Exception as error:  # zipfile raises many types of errors
        raise QkjaxError(
            f"cannot list the zip file {path} ({str(error)[:200]}); copy or create the file again"
        ) from error
    for info in listed:
        if info.filename and not info.is_dir() and is_image(info.filename):
            member, size = f"{name}/{info.filename}", info.file_size
            read = partial(_read_member, partial(_in_open_zip, path, stat.st_mtime_ns, info), member, size)
            yield Listed(member, size, read, part_with_checksum(size, info.CRC))


def images_in_tar(
    path: Path, name: str, is_image: Callable[[str], bool], note: Callable[[str], None]
) -> Iterator[Listed]:
    """Yields the images of a tar file. Only the headers in the file are read.

    The tar file is opened again for each image, because a webdataset has too many tar files to keep all of them open.

    Args:
      path: path of the tar file.
      name: name of the tar file in the image set.
      is_image: function that states whether a file name is the name of an image.
      note: function that receives a sentence about the archive.

    Raises:
      QkjaxError: the file cannot be listed.
    """
    stat = path.stat()
    try:
        with open(path, "rb") as file:
            members, has_end, others = list_members(file, stat.st_size)
    except ValueError as error:
        raise QkjaxError(f"cannot list the tar file {path} ({error}); copy or create the file again") from error
    if not has_end:
        note(f"{name} has no end mark, so files after the last complete file may be missing")
    if others := [other for other in others if is_image(other)]:
        note(f"{name} has links, devices or sparse files, which are skipped: {len(others)}, such as {others[0]}")
    for member in members:
        if is_image(member.name):
            full = f"{name}/{member.name}"
            read = partial(_read_member, partial(_at, path, member.begin), full, member.size)
            part = part_of_range(path, stat, member.begin, member.size, member.changed)
            yield Listed(full, member.size, read, part)


def _stated_count(path: Path) -> int | None:
    """The number of entries that the end record of a zip file states; None if there is no such record.

    zipfile neither reads this number nor limits the size of the directory.

    Raises:
      ValueError: the end record states a directory of enormous size.
    """
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16) - 98))  # the longest comment and two end records
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    size = struct.unpack_from("<L", tail, at + 12)[0] if 0 <= at <= len(tail) - 16 else 0
    if at >= 76 and tail[at - 76 : at - 72] == b"PK\x06\x06":
        size = max(size if size < 0xFFFFFFFF else 0, struct.unpack_from("<Q", tail, at - 36)[0])
    if size > MAX_DIRECTORY:
        raise ValueError(f"it states a directory of {size} bytes, and the limit is {MAX_DIRECTORY}")
    return struct.unpack_from("<H", tail, at + 10)[0] if 0 <= at <= len(tail) - 16 else None


@lru_cache(maxsize=OPEN_ARCHIVES)
def _zip(path: Path, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _in_open_zip(path: Path, changed: int, info: zipfile.ZipInfo):
    if info.flag_bits & 1:
        raise ValueError("the archive entry is encrypted")
    if info.compress_type == zipfile.ZIP_BZIP2:  # zipfile unpacks whole bzip2 blocks, which may have any size
        raise ValueError("the archive entry is compressed with bzip2, expected deflate or no compression")
    return _zip(path, changed).open(info)


def _at(path: Path, offset: int):
    file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
    file.seek(offset)
    return file


def _read_member(open_member: Callable, name: str, size: int) -> "PIL.Image.Image":
    try:
        if size > MAX_BYTES:
            raise ValueError(f"the unpacked size is {size / 2**20:.0f} MiB, but the limit is {MAX_BYTES >> 20} MiB")
        UNPACKED.take(size)
        with open_member() as file:
            data = file.read(size)
    except Exception as error:  # for damaged data, zipfile raises many types of errors
        raise QkjaxError(f"cannot read image {name}: {error}; create the archive again") from error
    return open_image(BytesIO(data), name)
