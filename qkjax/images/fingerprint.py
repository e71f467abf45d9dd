"""Computes fingerprints: strings that change if the files of an image set change."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

MAX_HASHED = 1 << 30
"""Largest total number of bytes of a set for which the fingerprint covers the contents of files. Reading this many
bytes takes about a second."""
BLOCK = 1 << 20


class Part(NamedTuple):
    """A file of an image set, such as an image, a mask, or a member of an archive.

    Attributes:
      size: number of bytes that `digest` reads.
      stamp: string that changes if the file is replaced; it is used for large sets.
      digest: function that returns a hash of the content.
    """

    size: int
    stamp: str
    digest: Callable[[], bytes]


def part_of_file(path: Path) -> Part:
    """The part of a set that is a whole file. For a missing file or a pipe, the part is a constant."""
    if not path.is_file():
        return Part(0, "none", lambda: b"none")
    stat = path.stat()
    return Part(stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}", partial(_content, path, 0, None))


def part_of_range(path: Path, stat: os.stat_result, begin: int, size: int, changed: int) -> Part:
    """The part of a set that is an uncompressed range of an archive; `stat` is the `os.stat` of the archive."""
    stamp = f"{size} {changed} {begin} {stat.st_size} {stat.st_mtime_ns}"
    return Part(size, stamp, partial(_content, path, begin, size))


def part_with_checksum(size: int, checksum: int) -> Part:
    """The part of a set for which the archive states a checksum, so that its content need not be read."""
    text = f"{size} {checksum:08x}"
    return Part(0, text, text.encode)


def digest_of(items: Sequence[tuple[str, Sequence[Part]]], more: object = ()) -> str:
    """A hash of the names and parts of items, and of `more`.

    For a set of at most `MAX_HASHED` bytes, the hash covers the contents of files, so that a copy of the set has the
    same hash. For a larger set, the hash covers the sizes and modification times of files, and begins with "times".
    """
    digest = hashlib.sha256(repr([more, [str(name) for name, _ in items]]).encode(errors="replace"))
    parts = [part for _, parts in items for part in parts]
    if sum(part.size for part in parts) > MAX_HASHED:
        digest.update("\n".join(part.stamp for part in parts).encode())
        return f"times {digest.hexdigest()}"
    with ThreadPoolExecutor() as pool:
        for content in pool.map(lambda part: part.digest(), parts):
            digest.update(content)
    return digest.hexdigest()


def _content(path: Path, begin: int, size: int | None) -> bytes:
    """The SHA-256 of a range of a file, or of the file from `begin` to its end."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            while block := file.read(BLOCK if size is None else min(BLOCK, size)):
                digest.update(block)
                size = None if size is None else size - len(block)
    except OSError:
        return b"none"  # the error is reported when the image is read
    return digest.digest()
