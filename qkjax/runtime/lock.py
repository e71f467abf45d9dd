"""Locks of folders, which live as long as the process that holds them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from qkjax.errors import QkjaxError
from qkjax.runtime.files import make_folder

LOCK = ".lock"
WAIT_SECONDS = 600.0
"""Longest time to wait for another process that writes results and figures."""


@contextmanager
def exclusive(folder: Path, shard: tuple[int, int] | None = None, *, wait: bool = False) -> Iterator[None]:
    """Locks a folder against other processes, and creates it if needed. With several hosts, the first one locks it for
    all.

    Args:
      folder: the folder.
      shard: index of a share and number of shares. The lock then keeps out only another process with the same share.
      wait: whether to wait for another process, at most `WAIT_SECONDS`.

    The operating system releases the lock of a process that ends in any way; a lock file that a killed process left
    locks nothing. The file is removed at the end, and so is a folder that was created and has stayed empty.

    Raises:
      QkjaxError: another process has locked the folder, or it cannot be written.
    """
    if jax.process_index() > 0:
        yield
        return
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise QkjaxError("filelock is not installed: pip install filelock") from error
    created = not folder.exists()
    make_folder(folder)
    file = folder / (f"{LOCK}-{shard[0]}-of-{shard[1]}" if shard else LOCK)
    lock = FileLock(file, timeout=WAIT_SECONDS if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise QkjaxError(f"another process works in {folder}: wait for it, or choose another folder") from error
    except OSError as error:
        raise QkjaxError(f"cannot lock {file}: {error.strerror or error}; choose another folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # before the release: no other process can have locked this file
            file.unlink()
        lock.release()
        if created:
            with suppress(OSError):
                folder.rmdir()
