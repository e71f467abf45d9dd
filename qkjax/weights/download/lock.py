"""Lets only one process at a time download a model. Other processes wait until the download is complete."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from qkjax.weights.download.partial_file import writing


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Locks the download `name` in a folder of checkpoints. If the process dies, the operating system frees the lock.

    Raises:
      QkjaxError: the folder cannot be written.
    """
    path = folder / ".locks" / f"{quote(name, safe='')[-200:]}.lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that is downloading {name}", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
