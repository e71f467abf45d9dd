"""Writes files atomically: a reader sees either the old or the new content of a file, never a partly written file."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.folders import check_folder

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

TEMPORARY = re.compile(r"\.(.+)-[a-z0-9_]{8}((?:\.[^.]*)?)", re.DOTALL)
"""Pattern of the names of temporary files: the stem of the file, eight characters from `mkstemp`, and the suffix."""

MOST_TEXT = 16 << 20
"""Bytes of a plan or a configuration."""


def _cannot_write(path: Path, error: OSError) -> QkjaxError:
    return QkjaxError(f"cannot write {path}: {error.strerror or error}; choose another folder or free some space")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translates errors of the operating system in the block, which writes to `path`.

    Raises:
      QkjaxError: the path cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, and renames it to `path` if the block ends without an error.

    The temporary name has the same suffix as `path`, because writers such as matplotlib infer the format from the
    suffix.

    Raises:
      QkjaxError: the folder cannot be created or written, the disk is full, or `path` is a folder, a pipe, a device or
        a link to one of these or to nothing. After such an error, `path` is unchanged.
    """
    temporary = handle = None
    if (path.is_symlink() and not path.exists()) or (path.exists() and not path.is_file()):
        raise QkjaxError(f"cannot write {path}: it is not a regular file; remove it, or choose another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        discard(left for left in temporaries([path]) if left.is_file())  # of processes that were killed
        handle, temporary = _locked_temporary(path)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes the file readable only by its owner; results get the permissions of the umask.
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
            os.close(handle)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """A new temporary file next to `path`, and an open handle that locks it while this process writes it."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        if fcntl:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process took it for abandoned before it was locked


def remove(path: Path) -> None:
    """Removes a file written with `atomic_path`, and temporary files of processes that were killed while writing."""
    discard([path, *temporaries([path])])


def discard(paths: Iterable[Path]) -> None:
    """Removes files and folders, and ignores those that cannot be removed."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                _unlink(path)


def _unlink(path: Path) -> None:
    """Removes a file.

    Raises:
      OSError: the file cannot be removed, or it is a temporary file of `atomic_path` that a process is writing.
    """
    if fcntl and TEMPORARY.fullmatch(path.name) and path.is_file():
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)
    else:
        path.unlink()


def temporaries(paths: Iterable[Path]) -> list[Path]:
    """The temporary files and folders of these paths; see `atomic_path` and `atomic_folder`.

    `discard` removes the files of processes that were killed, and leaves the files of a process that is still writing.
    Folders look the same in both cases. Therefore, only a process that has locked the folder that contains temporary
    folders may remove them.
    """
    names: dict[Path, set[tuple[str, str]]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add((path.stem, path.suffix))
    found = []
    for folder, own in names.items():
        with suppress(OSError):
            matches = [(file, TEMPORARY.fullmatch(file.name)) for file in folder.iterdir()]
            found += [file for file, match in matches if match and match.groups() in own]
    return found


def read_bytes(path: Path) -> bytes | None:
    """The content of a file, or None if the file does not exist.

    Raises:
      QkjaxError: the file cannot be read, or is not a regular file (reading a pipe or a device might block or never
        end).
    """
    try:
        if not path.is_file() and (path.exists() or path.is_symlink()):
            raise QkjaxError(f"{path} is not a regular file: remove it")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QkjaxError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The text of a plan or a configuration.

    Raises:
      QkjaxError: the file is not a regular file with UTF-8 text of at most `MOST_TEXT` bytes, or cannot be read.
    """
    if path.is_file() and (size := path.stat().st_size) > MOST_TEXT:
        raise QkjaxError(f"cannot read {path}: it has {size} bytes, expected text of at most {MOST_TEXT}")
    data = read_bytes(path)
    if data is None:
        raise QkjaxError(f"cannot read {path}: No such file or directory")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise QkjaxError(f"cannot read {path}: {error}; save it as UTF-8") from error


@contextmanager
def atomic_folder(path: Path, marker: str, text: str, names: tuple[str, ...]) -> Iterator[Path]:
    """Yields a temporary folder next to `path`, which replaces `path` if the block ends without an error.

    The caller must have locked the folder that contains `path`. Any temporary folders of this kind in that folder come
    from processes that were killed, and are removed.

    Args:
      path: the folder to create or replace.
      marker: name of a file that must be in an existing folder for the folder to be replaced.
      text: text that the marker file must contain.
      names: names of all entries that an existing folder may have; a folder with any other entry is not replaced.

    Raises:
      QkjaxError: `path` is a file, is a folder that may not be replaced, or is not writable. After such an error,
        `path` is unchanged.
    """
    check_replaceable(path, marker, text, names)
    path, temporary = path.resolve(), None  # if `path` is a link, the link stays and its target is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in temporaries([path]):
            if left.is_dir() and {item.name for item in left.iterdir()} <= {"new", "before"}:
                _restore(left, path)
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
            _restore(temporary, path)


def _restore(temporary: Path, path: Path) -> None:
    """Removes a temporary folder, after moving the old folder back if the process stopped between the two renames."""
    if (temporary / "before").exists() and not path.exists():
        (temporary / "before").rename(path)
    shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, marker: str, text: str, names: tuple[str, ...]) -> None:
    """Checks that `path` does not exist, or is a folder that `atomic_folder` may replace.

    Raises:
      QkjaxError: `path` exists and may not be replaced.
    """
    check_folder(path)
    if Path.cwd().is_relative_to(path.resolve()):
        raise QkjaxError(
            f"folder={path}: this folder is or contains the working folder and would be replaced; pass another folder"
        )
    entries = {item.name for item in path.iterdir()} if path.is_dir() else set()
    replaceable = marker in entries and entries <= set(names) and text in (path / marker).read_text(errors="replace")
    if entries and not replaceable:
        raise QkjaxError(
            f"folder={path}: the folder would be replaced, but it contains files that qkjax did not write; pass "
            "another folder"
        )
