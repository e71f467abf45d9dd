"""The oracle: the result is right, or the input is refused in one line, within limits of time and memory.

No file of the input may change, and no file may remain in the current folder, in the folder of temporary files, or
after an error in the folder of outputs.
"""

import hashlib
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.visible import HIDDEN, visible

from .kind import Change, Kind, NotApplicableError

SECONDS = 60
"""Longest time of one example; the machine may be busy."""
MEMORY = 1 << 30
"""Largest memory of one example above that before, in bytes."""
LENGTH = 500


class ViolationError(AssertionError):
    """A violation. Its first line identifies it: failures with equal first lines have the same cause."""


class TooSlow(BaseException):
    """Raised in the main thread when an example takes too long; no handler of errors catches it."""


def examine(kind: Kind, changes: Sequence[Change], home: Path) -> str:
    """Runs one example in a folder of its own.

    Returns:
      "right", or the line with which qkjax refused the input.

    Raises:
      ViolationError: qkjax violates what the module's docstring states.
      NotApplicableError: the changes do not fit each other.
    """
    folder = Path(tempfile.mkdtemp(dir=home))
    source, scratch, empty = (folder / name for name in ("input", "scratch", "empty"))
    for path in (source, scratch, empty):
        path.mkdir()
    try:
        try:
            target = kind.make(source, changes)
        except Exception as error:  # the libraries that write inputs raise errors of many types
            raise NotApplicableError(repr(error)) from error
        before = {} if kind.writes else state_of(source)
        with _limits(), _inside(empty):
            outcome = _outcome(kind, changes, target, scratch)
        _check_files(before, source, scratch if outcome != "right" and not kind.writes else empty, empty)
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(kind: Kind, changes: Sequence[Change], target: Path, scratch: Path) -> str:
    try:
        result = kind.run(target, scratch)
    except QkjaxError as error:
        _check_line(str(error), target, _place(error))
        return str(error)
    except TooSlow as error:
        raise ViolationError(f"longer than {SECONDS} s: {_place(error)}\n{traceback.format_exc()}") from None
    except Exception as error:
        raise ViolationError(f"{type(error).__name__} in {_place(error)}\n{traceback.format_exc()}") from None
    try:
        kind.check(target, changes, result)
    except ViolationError:
        raise
    except Exception as error:
        names = ", ".join(name for name, *_ in changes)
        line = f"wrong after {names}: {_place(error, 'fuzz')}"
        raise ViolationError(f"{line}\n{traceback.format_exc()[-3000:]}") from None
    return "right"


def _place(error: BaseException, package: str = "qkjax") -> str:
    """The last line of code in a package that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"/{package}/" in frame.filename]
    frames = [f for f in frames if package != "qkjax" or "/tests/" not in f.filename] or frames
    return f"{frames[-1].filename.rpartition(f'/{package}/')[2]}: {frames[-1].line}" if frames else "?"


def _check_line(line: str, target: Path, place: str) -> None:
    """One short line of visible characters that names the input, or a part of it."""
    inside = [path.name for path in target.rglob("*")] if target.is_dir() else []
    names = {str(target), *(name for name in (target.name, *inside) if len(name) > 4)}
    if len(line) >= LENGTH:
        raise ViolationError(f"error of more than {LENGTH} characters: {place}\n{line}")
    if "\n" in line or HIDDEN.search(visible(line)):
        raise ViolationError(f"error of several lines: {place}\n{line!r}")
    if not any(name in line or visible(name) in line or _as_text(name) in line for name in names):
        raise ViolationError(f"error that names no file: {place}\n{line}")


def _as_text(name: str) -> str:
    """A name as in a message of `QkjaxError`."""
    return " ".join(name.split()).encode(errors="replace").decode()


def state_of(root: Path) -> dict[str, tuple]:
    """Type, content and time of change of everything in a folder."""
    states = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        states[str(path)] = stat.st_mode, content, stat.st_mtime_ns
    return states


def _check_files(before: dict, source: Path, *empty: Path) -> None:
    if before and (after := state_of(source)) != before:
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        raise ViolationError(f"the input has changed: {', '.join(Path(name).name for name in changed)[:200]}")
    if left := [path.name for folder in empty for path in folder.rglob("*")]:
        raise ViolationError(f"files are left over: {', '.join(left)[:200]}")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The current folder and that of temporary files; the output is dropped."""
    earlier, temporary = os.getcwd(), tempfile.tempdir
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        os.chdir(earlier)
        tempfile.tempdir = temporary


@contextmanager
def _limits() -> Iterator[None]:
    """Raises `TooSlow` after `SECONDS`, and `ViolationError` if the memory grew by more than `MEMORY` at any time."""

    def stop(*_) -> None:
        raise TooSlow

    earlier, start = signal.signal(signal.SIGALRM, stop), peak_memory(reset=True)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    if (grown := peak_memory() - start) > MEMORY:
        raise ViolationError(f"memory grew by more than {MEMORY >> 20} MiB\n{grown >> 20} MiB")


def peak_memory(reset: bool = False) -> int:
    """Largest resident memory of this process since the last reset, in bytes; 0 where the system does not state it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) << 10
