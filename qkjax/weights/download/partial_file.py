"""The partial file of a download, which gets its final name when it is complete and verified.

The name of a partial file contains a hash of the server's ETag, so that two versions of a file are never mixed. Each
process writes every byte at its final position, leaves no gap, and never shortens the file. Two processes may therefore
download the same file at the same time.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from qkjax.errors import QkjaxError
from qkjax.weights.download.content import check_content
from qkjax.weights.download.crc32c import Crc32c

CHUNK = 1 << 20


class TryAgainError(Exception):
    """An attempt failed for a temporary reason. `gained` is the number of bytes that the attempt received."""

    def __init__(self, problem: str, code: int = 0):
        super().__init__(problem)
        self.code, self.gained = code, 0


def prepare(partial: Path, length: int) -> int:
    """Creates the folder, checks the free space, and returns the number of bytes received so far.

    Raises:
      QkjaxError: the folder is not writable, or the disk has too little space for the rest of the file.
    """
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.parent).free
    have = size(partial)
    if free < length - have:
        raise QkjaxError(
            f"{partial.parent} has {free / 1e6:.1f} MB of free space, but the download needs "
            f"{(length - have) / 1e6:.1f} MB: free some space, or set QKJAX_CHECKPOINTS to another folder"
        )
    return have


def size(partial: Path) -> int:
    """The size of a file in bytes, or 0 if the file does not exist."""
    try:
        return partial.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def writing(partial: Path) -> Iterator[None]:
    """Converts errors of the operating system to `QkjaxError`."""
    try:
        yield
    except OSError as error:
        raise QkjaxError(
            f"cannot write to {partial.parent}: {error.strerror or error}; free some space, or set QKJAX_CHECKPOINTS "
            "to another folder"
        ) from error


def open_partial(partial: Path, start: int) -> BinaryIO:
    """Opens the partial file for writing from byte `start`.

    Raises:
      TryAgainError: the file is shorter than `start`, so writing would leave a gap.
    """
    try:
        file = os.fdopen(os.open(partial, os.O_RDWR | (0 if start else os.O_CREAT), 0o666), "r+b")
    except FileNotFoundError as error:
        raise TryAgainError("another process downloaded the same file") from error
    if os.fstat(file.fileno()).st_size < start:
        file.close()
        raise TryAgainError("another process started the download again")
    return file


class WrongDigestError(QkjaxError):
    """The hash of a file differs from the expected hash."""


def finish(partial: Path, path: Path, length: int, expected: Mapping[str, str]) -> None:
    """Verifies the partial file and renames it to `path`."""
    claimed = partial.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_size > length:  # the partial file belongs to another file
                partial.unlink()
            if stat.st_size != length:
                raise TryAgainError(f"{stat.st_size} of {length} bytes were received")
            if len(expected) > 1:  # the other hashes are stronger
                expected = {kind: digest for kind, digest in expected.items() if kind != "crc32c"}
            verify(file, path.name, expected)
            check_content(file, path.name)
            os.fsync(file.fileno())
            # Another process may have finished, and a third process may have started again: only the verified file gets
            # the name.
            os.rename(partial, claimed)
            if not os.path.samestat(stat, os.stat(claimed)):
                claimed.unlink()
                raise TryAgainError("another process downloaded the same file")
            os.replace(claimed, path)
    except FileNotFoundError as error:
        raise TryAgainError("another process downloaded the same file") from error
    except QkjaxError:
        partial.unlink(missing_ok=True)
        raise


def verify(file: BinaryIO, name: str, expected: Mapping[str, str]) -> None:
    """Checks that a file has the expected hashes, which are given by algorithm ("" if unknown).

    Raises:
      WrongDigestError: a hash differs from the expected hash. The message refers to the file as `name`.
    """
    known = {kind: digest for kind, digest in expected.items() if digest}
    for kind, actual in digests(file, known).items():
        if actual != known[kind]:
            raise WrongDigestError(
                f"{name} has {kind} {actual[:16]}..., expected {known[kind][:16]}...: the file is incomplete or "
                "altered; try again"
            )


def digests(file: BinaryIO, kinds: Iterable[str]) -> dict[str, str]:
    """The hexadecimal hashes of a file: "crc32c", "git" (git's identifier of a file), or any hash in hashlib."""
    running = {kind: _digest(kind, os.fstat(file.fileno()).st_size) for kind in kinds}
    file.seek(0)
    while running and (block := file.read(CHUNK)):
        for digest in running.values():
            digest.update(block)
    return {kind: digest.hexdigest() for kind, digest in running.items()}


def _digest(kind: str, length: int) -> Any:
    if kind == "crc32c":
        return Crc32c()
    if kind == "git":
        return hashlib.sha1(f"blob {length}\0".encode(), usedforsecurity=False)
    return hashlib.new(kind, usedforsecurity=False)
