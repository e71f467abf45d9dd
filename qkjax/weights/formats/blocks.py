"""Reads arrays from a known position in a file, block by block.

Files are read, not mapped into memory. An array in a mapped file would change with the file, and reading it would end
the process (SIGBUS) if another program truncated the file, for example by copying a new file over it. Several threads
may read at the same time.
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 20
"""Bytes read at the same time: few enough that they are still in the processor's cache when they are checked."""
PAGES = 1 << 18
"""Number of bytes from which an array has memory pages of its own."""


class Stamp(NamedTuple):
    """Identity of a file and of its content, which differs after the file was replaced or written."""

    device: int
    inode: int
    size: int
    modified: int


def stamp_of(file: int | Path) -> Stamp:
    """The identity, size and modification time of an open file (its descriptor) or of a path."""
    stat = os.stat(file)
    return Stamp(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def read_bytes(
    path: Path, stamp: Stamp, start: int, size: int, each: Callable[[memoryview], None] = lambda block: None
) -> np.ndarray:
    """Reads bytes of a file into a new array.

    Args:
      path: the file.
      stamp: result of `stamp_of` at the time when the position of the bytes was determined.
      start: the first byte.
      size: number of bytes.
      each: function to call with each block, in order.

    Raises:
      OSError: the file cannot be read, or has changed since the stamp was taken.
      EOFError: the file ends before the last byte.
      MemoryError: the array does not fit into memory.
    """
    with open(path, "rb", buffering=0) as file:
        if stamp_of(file.fileno()) != stamp:
            raise OSError("the file was changed while it was read")
        if start + size > stamp.size:
            raise EOFError(f"the file has {stamp.size} bytes, and the data end at {start + size}")
        file.seek(start)
        view, at = memoryview(_empty(size)), 0
        while at < size:
            if not (count := file.readinto(view[at : at + BLOCK])):
                raise EOFError(f"{at} bytes of data, expected {size}")
            each(view[at : at + count])
            at += count
    return np.frombuffer(view, np.uint8)


def _empty(size: int) -> bytearray | mmap.mmap:
    """New memory, which other threads can fill at the same time.

    - `bytearray` writes zeros while it holds the global lock, so that threads wait for each other.
    - numpy would ask for huge pages, for which a system whose memory is full of cached files first moves other pages:
      reading then takes up to four times as long.

    Raises:
      MemoryError: the bytes do not fit into memory.
    """
    if size < PAGES:
        return bytearray(size)
    try:
        return mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise MemoryError(f"{size} bytes do not fit into memory") from error
