"""Atomic writes: a reader sees the old or the new content of a file, never a part."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qkjax.errors import QkjaxError


def _cannot_write(path: Path, error: OSError) -> QkjaxError:
    return QkjaxError(f"cannot write {path}: {error.strerror or error}; choose another folder or free some space")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, which is renamed to `path` if the block ends without an error.

    The temporary name has the same suffix, from which writers such as matplotlib infer the format.

    Raises:
      QkjaxError: the folder cannot be created or written, or the disk is full; `path` is then unchanged.
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
    """Creates a folder for results, before the work starts.

    Raises:
      QkjaxError: the path is a file, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise QkjaxError(f"folder={path}: this is a file, and results need a folder; pass another one") from error
    except OSError as error:
        raise QkjaxError(f"folder={path}: cannot be created ({error.strerror or error}); pass another one") from error


def remove(path: Path) -> None:
    """Removes a file written with `atomic_path`, and temporary files of processes that were killed while writing."""
    discard([path, *temporaries([path])])


def discard(paths: Iterable[Path]) -> None:
    """Removes files and folders, as far as that is possible."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def temporaries(paths: Iterable[Path]) -> list[Path]:
    """Temporary files of processes that were killed while they wrote these files with `atomic_path`. Those of a process
    that is still writing look the same: only a process that has locked the folder may remove them."""
    found = []
    for path in paths:
        # mkstemp puts eight of these characters between prefix and suffix
        name = re.compile(rf"\.{re.escape(path.stem)}-[a-z0-9_]{{8}}{re.escape(path.suffix)}")
        with suppress(OSError):
            found += [file for file in path.parent.iterdir() if name.fullmatch(file.name)]
    return found


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None if there is none.

    Raises:
      QkjaxError: it is not a regular file, which would block or have no end, or it cannot be read.
    """
    try:
        if not path.is_file() and (path.exists() or path.is_symlink()):
            raise QkjaxError(f"{path} is not a regular file: remove it")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QkjaxError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def atomic_folder(path: Path, marker: str, text: str, names: tuple[str, ...]) -> Iterator[Path]:
    """A temporary folder next to `path`, which replaces `path` if the block ends without an error.

    Args:
      marker, text: name of a file, and a text that it contains. They mark folders of this kind, which alone may be
        replaced.
      names: names of all entries that such a folder may have; a folder with any other entry is not replaced.

    Raises:
      QkjaxError: `path` is a file or a folder of another kind, or it cannot be written; it is then unchanged.
    """
    check_replaceable(path, marker, text, names)
    path, temporary = path.resolve(), None  # a link remains, and its target is replaced
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
                (temporary / "before").rename(path)  # stopped between the two renames: restores the old folder
            shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, marker: str, text: str, names: tuple[str, ...]) -> None:
    """Checks that `path` is free or may be replaced, see `atomic_folder`.

    Raises:
      QkjaxError: it may not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise QkjaxError(f"folder={path}: this is a file, and a folder is expected; pass another one")
    if Path.cwd().is_relative_to(path.resolve()):
        raise QkjaxError(
            f"folder={path}: this is the working folder, or above it, and would be replaced; pass another one"
        )
    entries = {item.name for item in path.iterdir()} if path.is_dir() else set()
    replaceable = marker in entries and entries <= set(names) and text in (path / marker).read_text(errors="replace")
    if entries and not replaceable:
        raise QkjaxError(f"folder={path}: it has other files in it, and would be replaced; pass another one")
