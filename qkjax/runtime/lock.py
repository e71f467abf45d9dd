"""Locks folders. The operating system releases a lock when the process that holds it ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime import hosts
from qkjax.runtime.folders import make_folder

LOCK = ".qkjax.lock"
WAIT_SECONDS = 600.0
"""Longest time to wait for another process that writes results and figures."""


@contextmanager
def exclusive(folder: Path, shard: tuple[int, int] | None = None, *, wait: bool = False) -> Iterator[None]:
    """Locks a folder against other processes, and creates the folder if needed.

    With several hosts, the first host locks the folder for all hosts, and every host waits until the folder is locked.
    For work that only the first host does, see `exclusive_here`.

    Args:
      folder: the folder.
      shard: index of a share and number of shares. The lock then excludes only other processes with the same share.
      wait: whether to wait for another process, at most `WAIT_SECONDS`.

    Raises:
      QkjaxError: another process has locked the folder, or the folder is not writable. Every host raises the error.
    """
    created = not folder.exists()
    file = folder / (f"{LOCK}-{shard[0]}-of-{shard[1]}" if shard else LOCK)
    with _released(hosts.on_first_host(lambda: _locked(file, wait)), file, created):
        yield


@contextmanager
def exclusive_here(folder: Path) -> Iterator[None]:
    """Does the same as `exclusive`, for work that only one host does.

    Raises:
      QkjaxError: another process has locked the folder, or it cannot be written.
    """
    created = not folder.exists()
    with _released(_locked(folder / LOCK, wait=False), folder / LOCK, created):
        yield


@contextmanager
def _released(lock: "filelock.FileLock | None", file: Path, created: bool) -> Iterator[None]:
    """Releases the lock of a folder at the end; does nothing without a lock."""
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # before the release: no other process can have locked this file
                file.unlink()
            lock.release()
            if created:
                with suppress(OSError):
                    file.parent.rmdir()


def _locked(file: Path, wait: bool) -> "filelock.FileLock":
    """The lock of a folder, which this process now holds."""
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise QkjaxError("filelock is not installed: pip install filelock") from error
    make_folder(file.parent)
    if file.is_symlink() or (file.exists() and not (file.is_file() and file.stat().st_size == 0)):
        raise QkjaxError(f"{file} is not a lock of qkjax: remove it, or choose another folder")  # it would be emptied
    lock = FileLock(file, timeout=WAIT_SECONDS if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise QkjaxError(
            f"another process is using {file.parent}: wait until it ends, or choose another folder"
        ) from error
    except OSError as error:
        raise QkjaxError(f"cannot lock {file}: {error.strerror or error}; choose another folder") from error
    return lock
