"""Writing files so that a reader never sees half of one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qkjax.errors import QkjaxError


def _cannot_write(path: Path, error: OSError) -> QkjaxError:
    return QkjaxError(f"cannot write {path}: {error.strerror or error}; choose another folder or make room")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends without an error.

    The temporary name keeps the suffix, since writers such as matplotlib choose a format by it.

    Raises:
      QkjaxError: the folder cannot be made or written, or the disk is full; `path` is untouched.
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
        # mkstemp makes files for the owner alone; results are for whoever the umask says.
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
    """Makes a folder for results, before the work that will fill it.

    Raises:
      QkjaxError: it is a file, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise QkjaxError(f"folder={path}: this is a file, and results need a folder; give another one") from error
    except OSError as error:
        raise QkjaxError(f"folder={path}: cannot be created ({error.strerror or error}); give another one") from error


def remove(path: Path) -> None:
    """Removes a file written by way of `atomic_path`, and what processes killed while writing it left."""
    for left in (path, *path.parent.glob(f".{path.stem}-*{path.suffix}")):
        with suppress(OSError):
            left.unlink()


@contextmanager
def atomic_folder(path: Path, mark: str, sign: str, names: tuple[str, ...]) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends without an error.

    Args:
      mark, sign: a file that what is made has, and a text in it; so had what may be replaced.
      names: of all that may be replaced: a folder with anything else in it is left alone.

    Raises:
      QkjaxError: `path` is a file, or a folder with other things in it; or it cannot be written. It is untouched.
    """
    check_replaceable(path, mark, sign, names)
    path, temporary = path.resolve(), None  # a link stays, and what it leads to is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        made = temporary / "made"
        made.mkdir()
        yield made
        if path.exists():
            path.rename(temporary / "before")
        made.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            if (temporary / "before").exists() and not path.exists():
                (temporary / "before").rename(path)  # stopped between the two: what was there goes back
            shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, mark: str, sign: str, names: tuple[str, ...]) -> None:
    """Whether a folder of ours may be written to `path`, see `atomic_folder`.

    Raises:
      QkjaxError: it may not.
    """
    if path.exists() and not path.is_dir():
        raise QkjaxError(f"folder={path}: this is a file, and a folder is expected; give another one")
    if Path.cwd().is_relative_to(path.resolve()):
        raise QkjaxError(
            f"folder={path}: this is the working folder, or above it, and would be replaced; give another one"
        )
    inside = {item.name for item in path.iterdir()} if path.is_dir() else set()
    ours = mark in inside and inside <= set(names) and sign in (path / mark).read_text(errors="replace")
    if inside and not ours:
        raise QkjaxError(f"folder={path}: it has other files in it, and would be replaced; give another one")
