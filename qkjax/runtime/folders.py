"""Checks and creates folders for results. Call these functions before a long computation, so that errors come early."""

import os
from contextlib import suppress
from pathlib import Path

from qkjax.errors import QkjaxError


def check_folder(path: Path) -> None:
    """Checks that a path is a folder for results, or can become one. The function creates nothing.

    A folder for results contains only files, folders, and links to these: a pipe or a device with the name of a result
    would block the process, or would be replaced.

    Raises:
      QkjaxError: the path cannot become a folder, cannot be written, or contains something else.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        if not nearest.is_dir():
            subject = f"folder={path}" if nearest == path else f"folder={path}: {nearest}"
            raise QkjaxError(f"{subject} is {_kind(nearest)}: expected a folder for the results; pass another path")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13))
        for item in sorted(path.iterdir()) if nearest == path else ():
            if not (item.is_file() or item.is_dir()):
                raise QkjaxError(
                    f"{item} is {_kind(item)}: expected only files and folders in a folder for results; remove it, or "
                    "pass another folder"
                )
    except OSError as error:
        raise _cannot_create(path, error) from error


def make_folder(path: Path) -> None:
    """Creates a folder for results, after `check_folder`.

    Raises:
      QkjaxError: see `check_folder`, or the folder cannot be created.
    """
    check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_create(path, error) from error


def _kind(path: Path) -> str:
    """What a path that is not a folder is, in words."""
    if path.is_symlink() and not path.exists():
        return "a link to a missing file"
    return "a file" if path.is_file() else "a pipe, a socket or a device"


def _cannot_create(path: Path, error: OSError) -> QkjaxError:
    return QkjaxError(f"cannot create or write folder={path} ({error.strerror or error}); pass another folder")
