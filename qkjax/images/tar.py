"""Lists the files in a tar file.

Python's `tarfile` calls itself for each extension header, reads extensions of any size, and may move backwards in the
file. In contrast, this module reads each header once, in the order of the file, and limits the size of extensions.
"""

import re
import tarfile
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple

MAX_EXTENSION = 1 << 20  # limit in bytes for an extension header, which contains a name, times and attributes
MAX_CHAIN = 16  # limit for the number of extension headers of one file
PAX, GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
TEXT = ("utf-8", "surrogateescape")


class Member(NamedTuple):
    """A file in a tar file: its name, the position of its first byte, its size, and its modification time."""

    name: str
    begin: int
    size: int
    changed: int


class _Header(NamedTuple):
    """A header, the extensions that precede it, and the position of the next header."""

    info: tarfile.TarInfo
    extended: dict[str, str]
    begin: int
    end: int


def list_members(file: BufferedReader, size: int) -> tuple[list[Member], bool, list[str]]:
    """Lists the regular, non-sparse files in a tar file of `size` bytes.

    The function also returns whether the file has an end mark, and the names of links, devices, sparse files and so on.

    Raises:
      ValueError: a header is damaged or cut off, states an impossible size, or has too many or too large extensions, or
        the file is cut off.
    """
    members, others, at = [], [], 0
    for info, extended, begin, end in _headers(file, size):
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended)
        name, is_file = extended.get("path", info.name), info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        if is_file and not sparse:
            members.append(Member(name, begin, end - begin, info.mtime))
        elif not info.isdir():
            others.append(name)
        at = _blocks(end)
    if not size:
        raise ValueError("the file is empty")
    return members, at < size, others


def _headers(file: BufferedReader, size: int) -> Iterator[_Header]:
    at, extended, chain = 0, {}, 0
    while (info := _header(file, at)) is not None:
        if info.type in (*PAX, GLOBAL, LONG_NAME, LONG_LINK):
            chain += 1
            if chain > MAX_CHAIN:
                raise ValueError(f"more than {MAX_CHAIN} extension headers follow each other at byte {at}")
            extended |= _extension(file, info, at)
            at = _blocks(at + tarfile.BLOCKSIZE + info.size)
            continue
        begin = at + tarfile.BLOCKSIZE
        if info.type == tarfile.GNUTYPE_SPARSE:
            begin = _after_sparse_headers(file, begin)
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        length = _size(extended.get("size", str(info.size)), at) if has_data else 0
        if begin + length > size:
            raise ValueError(f"the file at byte {begin} is cut off")
        yield _Header(info, extended, begin, begin + length)
        at, extended, chain = _blocks(begin + length), {}, 0
    if chain:
        raise ValueError(f"no header follows the extension header before byte {at}")


def _header(file: BufferedReader, at: int) -> tarfile.TarInfo | None:
    """Reads the header at a position in the file; returns None at the end mark and at the end of the file."""
    file.seek(at)
    block = file.read(tarfile.BLOCKSIZE)
    if not block.strip(b"\0"):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, *TEXT)
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"its header at byte {at} is cut off or damaged") from error
    _size(str(info.size), at)
    return info


def _extension(file: BufferedReader, info: tarfile.TarInfo, at: int) -> dict[str, str]:
    """Reads, from the extension header at a position, the name and size of the next file, and whether it is sparse."""
    if info.type in (GLOBAL, LONG_LINK):
        return {}
    if info.size > MAX_EXTENSION:
        raise ValueError(f"the extension header at byte {at} has {info.size} bytes, expected at most {MAX_EXTENSION}")
    data = file.read(info.size)
    if len(data) < info.size:
        raise ValueError(f"the extension header at byte {at} is cut off")
    if info.type == LONG_NAME:
        return {"path": data.split(b"\0", 1)[0].decode(*TEXT)}
    return dict(_records(data, at))


def _records(data: bytes, at: int) -> Iterator[tuple[str, str]]:
    """The records "LENGTH KEY=VALUE\\n" of a pax header that matter here."""
    place = 0
    while place < len(data) and data[place]:
        length, blank, _ = data[place : place + 10].partition(b" ")
        if not (blank and length.isdigit() and len(length) < int(length) <= len(data) - place):
            raise ValueError(f"the extension header at byte {at} is damaged")
        key, _, value = data[place + len(length) + 1 : place + int(length) - 1].partition(b"=")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            yield key.decode(*TEXT), value.decode(*TEXT)
        place += int(length)


def _after_sparse_headers(file: BufferedReader, at: int) -> int:
    """The position after the further headers of a sparse file, whose first header ends at `at`."""
    file.seek(at - tarfile.BLOCKSIZE)
    more = file.read(tarfile.BLOCKSIZE)[482:483]
    while more.strip(b"\0"):
        more = file.read(tarfile.BLOCKSIZE)[504:505]
        at += tarfile.BLOCKSIZE
    return at


def _size(text: str, at: int) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(f"the header at byte {at} states a size of {text[:30]!r} bytes")
    return int(text)


def _blocks(place: int) -> int:
    """Rounds a position up to a whole block."""
    return -(-place // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
