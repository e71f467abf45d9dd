"""Reads and writes npz files. The reader does not trust a file: it reads headers first, and then single members.

For a valid file, `numpy.load` would suffice. With this reader, the caller can check the shape and dtype of every member
before its data is decompressed, so that a small hostile file cannot fill the memory. The reader never unpickles, and
reports any damage as a one-line error.
"""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.weights.formats.blocks import read_bytes, stamp_of

HEADER_BYTES = 65536  # largest accepted header; numpy writes 128 bytes for these arrays
ZIP64_COUNT = 0xFFFF  # this value means that the number of members is stored elsewhere (zip64)
LOCAL_HEADER = 30
"""Bytes before the name of a member; the last four state the lengths of the name and of the extra field."""
CHUNK = 1 << 20  # small enough to stay in the processor's cache between two copies


class Header(NamedTuple):
    """The shape and the dtype of a stored array. The dtype may be bfloat16."""

    shape: tuple[int, ...]
    dtype: np.dtype


def weight_dtype(dtype: np.dtype) -> np.dtype | None:
    """The dtype of weights that a file stores as `dtype`, or None if it is not a floating-point type.

    numpy has no bfloat16, so files of big_vision store it as the void type '|V2'.
    """
    if dtype == np.dtype("V2"):
        return np.dtype(ml_dtypes.bfloat16)
    known = (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or dtype == np.dtype(ml_dtypes.bfloat16)
    return dtype.newbyteorder("=") if known else None


class NpzFile:
    """An open npz file for a `with` block, with the methods `keys()`, `header(key)`, `read(key)` and `text(key)`.

    Raises (all methods):
      QkjaxError: the file is truncated, damaged or not a zip file, or a member is not a plain array.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise QkjaxError(f"{path} does not exist: check the path, or use a name from `qkjax models`") from None
        except Exception as error:  # for damaged files, zipfile raises many kinds of exceptions
            raise QkjaxError(self._problem(error)) from error
        self._stamp = stamp_of(self._zip.fp.fileno())
        self._members = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}
        if len(self._members) < len(self._zip.infolist()):
            raise QkjaxError(f"{path} has two members with the same name; download or copy it again")
        if self._stated_count() not in (len(self._members), ZIP64_COUNT):
            raise QkjaxError(f"{path} is damaged: its directory omits members; download or copy it again")
        self._check_names()

    def _stated_count(self) -> int:
        """The number of members that the end of the file states.

        zipfile does not check this number. If a length in the directory was altered, zipfile skips all later members.
        """
        with open(self.path, "rb") as file:
            file.seek(-22 - len(self._zip.comment), io.SEEK_END)
            return int.from_bytes(file.read(22)[10:12], "little")

    def _check_names(self) -> None:
        """Checks that each member has the same name in the directory and before its data.

        zipfile checks this only for members that are opened. If a name is altered, the member may no longer be in
        `params/`, and would then never be opened.
        """
        with open(self.path, "rb") as file:
            for info in self._zip.infolist():
                file.seek(info.header_offset + 26)
                length = int.from_bytes(file.read(4)[:2], "little")
                encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
                if file.read(length).decode(encoding, "replace") != info.orig_filename:
                    raise self._damaged(info.filename, "its name differs between the directory and the member")

    def _problem(self, error: Exception) -> str:
        if not isinstance(error, zipfile.BadZipFile):
            return f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}"
        with open(self.path, "rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            return f"{self.path} is truncated: the end of the npz is missing; download or copy it again"
        return f"{self.path} is not an npz file: it begins with {start!r}, expected b'PK\\x03\\x04'"

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._zip.close()

    def keys(self) -> list[str]:
        """The names of all members, without `.npy`."""
        return list(self._members)

    def _damaged(self, key: str, error: Exception | str) -> QkjaxError:
        return QkjaxError(f"{self.path}: member {key!r} is damaged ({error}); download or copy the file again")

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[zipfile.ZipExtFile, Header, np.dtype, bool]]:
        """Opens a member at the start of its data; converts any exception in the block to `QkjaxError`."""
        try:
            with self._zip.open(self._members[key]) as member:
                shape, fortran, stored = _read_header(member)
                yield member, Header(shape, weight_dtype(stored) or stored), stored, fortran
        except QkjaxError:
            raise
        except MemoryError as error:
            raise QkjaxError(f"{self.path}: {key!r} does not fit into memory") from error
        except Exception as error:  # many kinds of exceptions, as above, and those of numpy's tokenizer, lzma and bz2
            raise self._damaged(key, error) from error

    def header(self, key: str) -> Header:
        """Reads the shape and the dtype of a member from its first bytes."""
        with self._opened(key) as (member, header, _, _):
            stored_size = self._members[key].file_size - member.tell()
        if header.dtype.hasobject:
            raise QkjaxError(f"{self.path}: {key!r} contains Python objects, which are not read; save plain arrays")
        if any(length < 1 for length in header.shape):
            raise self._damaged(key, f"shape {header.shape} has an empty axis")
        size = _bytes(header)
        if stored_size != size:
            raise self._damaged(key, f"{stored_size} bytes of data, expected {size} for shape {header.shape}")
        return header

    def read(self, key: str) -> np.ndarray:
        """Reads the array of one member, and verifies its checksum."""
        self.header(key)
        with self._opened(key) as (member, header, stored, fortran):
            is_plain = self._members[key].compress_type == zipfile.ZIP_STORED
            data = self._plain(key, member.tell(), header) if is_plain else _unpacked(member, _bytes(header))
        array = data.view(stored).reshape(header.shape[::-1] if fortran else header.shape)
        array = array.T if fortran else array
        return array.view(header.dtype) if stored.kind == "V" else array.astype(header.dtype, copy=False)

    def _plain(self, key: str, skipped: int, header: Header) -> np.ndarray:
        """Reads the data of a member that is not compressed, which zipfile would copy twice, and verifies its checksum.

        Args:
          key: the member.
          skipped: bytes of the member before its data.
          header: shape and dtype of the data.

        Raises:
          ValueError: the checksum differs.
          OSError, EOFError: see `read_bytes`.
        """
        info = self._members[key]
        fixed = read_bytes(self.path, self._stamp, info.header_offset, LOCAL_HEADER).tobytes()
        start = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", fixed[-4:]))
        checksum = zlib.crc32(read_bytes(self.path, self._stamp, start, skipped))

        def add(block: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(block, checksum)

        data = read_bytes(self.path, self._stamp, start + skipped, _bytes(header), add)
        if checksum != info.CRC:
            raise ValueError(f"its checksum is {checksum:08x}, and the directory states {info.CRC:08x}")
        return data

    def text(self, key: str) -> str:
        """Reads a member that is one string, such as the configuration that qkjax stores as JSON."""
        header = self.header(key)
        if header.dtype.kind != "U" or header.shape or header.dtype.itemsize > HEADER_BYTES:
            raise self._damaged(key, "expected a short text")
        return str(self.read(key))


def _unpacked(member: zipfile.ZipExtFile, size: int) -> np.ndarray:
    """The rest of a member, which must have `size` bytes; zipfile verifies the checksum at the end.

    Raises:
      EOFError: the number of bytes differs from the expected number.
    """
    data = np.empty(size, np.uint8)
    view, at = memoryview(data), 0
    while at < size and (count := member.readinto(view[at : at + CHUNK])):
        at += count
    if at < size or member.read(1):
        raise EOFError(f"{at} bytes of data, expected {size}")
    return data


def _read_header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, order and dtype. The function never seeks, because seeking would disable the checksum."""
    version = npy.read_magic(io.BytesIO(member.read(npy.MAGIC_LEN)))
    length = member.read(2 if version == (1, 0) else 4)
    if (size := int.from_bytes(length, "little")) > HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns when it parses a damaged header with its fallback
        return read(io.BytesIO(length + member.read(size)))


def _bytes(header: Header) -> int:
    """The size of the data in bytes, computed with Python integers, which do not overflow."""
    size = header.dtype.itemsize
    for length in header.shape:
        size *= length
    return size


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays atomically, in the format of big_vision's trainer (`np.savez`, with '/' in the keys).

    Raises:
      QkjaxError: the file cannot be written; no partial file remains.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
