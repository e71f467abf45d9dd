"""Atomic writes: a reader sees either the old or the new content of a file, never a partly written file."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qkjax.errors import QkjaxError


def _cannot_write(path: Path, error: OSError) -> QkjaxError:
    return QkjaxError(f"cannot write {path}: {error.strerror or error}; choose another folder or free some space")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, and renames it to `path` if the block ends without an error.

    The temporary name has the same suffix as `path`, since writers such as matplotlib infer the format from the suffix.

    Raises:
      QkjaxError: the folder cannot be created or written, or the disk is full. After such an error, `path` is
        unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes the file readable by its owner only; results get the permissions of the umask.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def make_folder(path: Path) -> None:
    """Creates a folder for results; callers do this before a long computation, so that errors come early.

    Raises:
      QkjaxError: the path is a file, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise QkjaxError(f"folder={path}: this is a file; expected a folder for results, pass another path") from error
    except OSError as error:
        raise QkjaxError(f"cannot create folder={path} ({error.strerror or error}); pass another folder") from error


def remove(path: Path) -> None:
    """Removes a file written with `atomic_path`, and temporary files left by processes killed while writing it."""
    for file in (path, *path.parent.glob(f".{path.stem}-*{path.suffix}")):
        with suppress(OSError):
            file.unlink()


@contextmanager
def atomic_folder(path: Path, marker: str, text: str, names: tuple[str, ...]) -> Iterator[Path]:
    """Yields a temporary folder next to `path`, which replaces `path` if the block ends without an error.

    Args:
      path: the folder to create or replace.
      marker: name of a file that must be in an existing folder for the folder to be replaced.
      text: text that the marker file must contain.
      names: names of all entries that an existing folder may have; a folder with any other entry is not replaced.

    Raises:
      QkjaxError: `path` is a file, a folder that may not be replaced, or not writable. After such an error, `path` is
        unchanged.
    """
    check_replaceable(path, marker, text, names)
    path, temporary = path.resolve(), None  # if `path` is a link, the link stays and its target is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        new = temporary / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(temporary / "before")
        new.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            if (temporary / "before").exists() and not path.exists():
                (temporary / "before").rename(path)  # restores the old folder after a stop between the two renames
            shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, marker: str, text: str, names: tuple[str, ...]) -> None:
    """Checks that `path` does not exist, or is a folder that `atomic_folder` may replace.

    Raises:
      QkjaxError: `path` exists and may not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise QkjaxError(f"folder={path}: this is a file; expected a folder, pass another path")
    if Path.cwd().is_relative_to(path.resolve()):
        raise QkjaxError(
            f"folder={path}: this folder is or contains the working folder and would be replaced; pass another folder"
        )
    entries = {item.name for item in path.iterdir()} if path.is_dir() else set()
    replaceable = marker in entries and entries <= set(names) and text in (path / marker).read_text(errors="replace")
    if entries and not replaceable:
        raise QkjaxError(
            f"folder={path}: the folder contains files that qkjax did not write and would be replaced; pass another "
            "folder"
        )
