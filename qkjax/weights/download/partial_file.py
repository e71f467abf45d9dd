"""A file on its way: partial until it is whole, checked and renamed.

A partial file is named after the version of its content (the server's ETag), so that two versions
are never glued together. Writers only ever put a version's bytes at their own places, leave no hole
and never shorten the file: two processes that fetch the same file at once do each other no harm.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qkjax.errors import QkjaxError


class TryAgainError(Exception):
    """An attempt failed in a way that may pass; the next has `gained` bytes less to get."""

    def __init__(self, problem: str, code: int = 0):
        super().__init__(problem)
        self.code, self.gained = code, 0


def prepare(partial: Path, length: int) -> int:
    """How much of a file is there; sees to it that the rest has room."""
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.parent).free
    have = size(partial)
    if free < length - have:
        raise QkjaxError(
            f"{partial.parent} has room for {free / 1e6:.1f} MB and {(length - have) / 1e6:.1f} MB are to come; "
            "make room or set QKJAX_CHECKPOINTS"
        )
    return have


def size(partial: Path) -> int:
    """Bytes that are there; 0 where there is no file."""
    try:
        return partial.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def writing(partial: Path) -> Iterator[None]:
    """Makes what the operating system refuses a line for the user."""
    try:
        yield
    except OSError as error:
        raise QkjaxError(
            f"cannot write to {partial.parent}: {error.strerror or error}; make room or set QKJAX_CHECKPOINTS"
        ) from error


def opened(partial: Path, start: int) -> BinaryIO:
    """The partial file to write to; with a `start` only one that goes so far, so that no hole is left in it."""
    try:
        file = os.fdopen(os.open(partial, os.O_RDWR | (0 if start else os.O_CREAT), 0o666), "r+b")
    except FileNotFoundError as error:
        raise TryAgainError("another process fetched the same") from error
    if os.fstat(file.fileno()).st_size < start:
        file.close()
        raise TryAgainError("another process began anew")
    return file


def finish(partial: Path, path: Path, length: int, wanted: Mapping[str, str]) -> None:
    """Checks what came and gives it its name."""
    claimed = partial.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_size != length:
                raise TryAgainError(f"{found.st_size} of {length} bytes are there")
            verify(file, path.name, wanted)
            os.fsync(file.fileno())
            # Another process may have finished and a third begun anew: only what was checked gets the name.
            os.rename(partial, claimed)
            if not os.path.samestat(found, os.stat(claimed)):
                claimed.unlink()
                raise TryAgainError("another process fetched the same")
            os.replace(claimed, path)
    except FileNotFoundError as error:
        raise TryAgainError("another process fetched the same") from error
    except QkjaxError:
        partial.unlink(missing_ok=True)
        raise


def verify(file: BinaryIO, name: str, wanted: Mapping[str, str]) -> None:
    """Compares digests, by their kind, of a file; those that are "" are not known.

    Raises:
      QkjaxError: one differs; speaks of the file as `name`.
    """
    for kind, digest in wanted.items():
        if digest:
            file.seek(0)
            found = hashlib.file_digest(file, kind).hexdigest()
            if found != digest:
                raise QkjaxError(
                    f"{name} has {kind} {found[:16]}..., wanted {digest[:16]}...: cut off or altered; try again"
                )
