"""Locks folders. The operating system releases a lock when the process that holds it ends."""

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
    """Locks a folder against other processes, and creates the folder if needed.

    With several hosts, the first host locks the folder for all hosts. When a process ends in any way, the operating
    system releases its lock, so a lock file that remains after a kill has no effect. At the end, the lock file is
    removed. If the folder was created here and is still empty, the folder is removed too.

    Args:
      folder: the folder.
      shard: index of a share and number of shares. The lock then excludes only other processes with the same share.
      wait: whether to wait for another process, at most `WAIT_SECONDS`.

    Raises:
      QkjaxError: another process has locked the folder, or the folder is not writable.
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
        raise QkjaxError(f"another process works in {folder}: wait until it ends, or choose another folder") from error
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
