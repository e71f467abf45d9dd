"""Changes of bytes and of names in a folder of files, whatever their format."""

import os
import shutil
from pathlib import Path

from hypothesis import strategies as st

from .kind import Change, NotApplicableError, change, pick

INDEX = st.integers(0, 99)
BYTES = ("flip", "cut", "zero", "ones", "insert", "repeat", "reverse", "end")
NAMES = ("\x1b[31mred", "\u202egpj", "two\nlines", "x" * 200, "=1+1", "@SUM(A1)", ".hidden", "\udcff", "a b", "%s{x}",
         "~", "é", "<b>", "-o", "a:b", "'", '"', "con", "model", "0")  # fmt: skip
LINKS = ("/dev/zero", "/dev/null", "/nothing", ".", "..", "itself", "outside")
PLACES = st.one_of(
    st.tuples(st.sampled_from(["start", "end"]), st.integers(0, 300)),
    st.tuples(st.just("anywhere"), st.integers(0, (1 << 30) - 1)),
).map(list)
CHANGES = st.one_of(
    change("bytes", INDEX, st.sampled_from(BYTES), PLACES, st.integers(1, 255)),
    change("bytes", INDEX, st.sampled_from(BYTES), PLACES, st.integers(1, 255)),
    change("remove", INDEX),
    change("empty", INDEX),
    change("rename", INDEX, st.sampled_from(NAMES), st.booleans()),
    change("copy", INDEX, st.sampled_from(NAMES), st.booleans()),
    change("swap", INDEX, INDEX),
    change("link", INDEX, st.sampled_from(LINKS)),
    change("pipe", INDEX),
    change("folder", INDEX),
)


def files_of(root: Path) -> list[Path]:
    """All regular files in a folder, or the file itself."""
    every = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [path for path in every if path.is_file() and not path.is_symlink()]


def apply(root: Path, name: str, *arguments) -> None:
    """Applies one of `CHANGES` to a file in a folder."""
    path = pick(arguments[0], files_of(root))
    _CHANGES[name](root, path, *arguments[1:])


def altered(data: bytes, how: str, place: list, amount: int) -> bytes:
    """Bytes with one alteration at a place, which is relative to the start, the end or the length."""
    side, number = place
    at = {"start": number, "end": len(data) - 1 - number, "anywhere": number * len(data) >> 30}[side]
    at = min(max(at, 0), max(len(data) - 1, 0))
    before, part, after = data[:at], data[at : at + amount], data[at + amount :]
    one = bytes([part[0] ^ amount]) + part[1:] if part else b""
    changed = {"flip": one, "cut": b"", "zero": bytes(len(part)), "ones": b"\xff" * len(part), "repeat": part * 2,
               "insert": bytes([amount]) * amount + part, "reverse": part[::-1]}  # fmt: skip
    return before if how == "end" else before + changed[how] + after


def _bytes(root: Path, path: Path, how: str, place: list, amount: int) -> None:
    path.write_bytes(altered(path.read_bytes(), how, place, amount))


def renamed(path: Path, name: str, keeps_suffix: bool) -> Path:
    """A path with another name, which still has its suffix if `keeps_suffix`."""
    other = path.with_name(name + path.suffix * keeps_suffix)
    if other.exists() or other.name in ("", ".", ".."):
        raise NotApplicableError(f"{other} exists")
    return other


def _swap(root: Path, path: Path, index: int) -> None:
    other = pick(index, files_of(root))
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def _link(root: Path, path: Path, target: str) -> None:
    if target == "outside":
        target = str(shutil.move(path, root.parent / f"moved{path.suffix}"))
    else:
        path.unlink()
    path.symlink_to(path.name if target == "itself" else target)


def _instead(path: Path, create) -> None:
    path.unlink()
    create(path)


_CHANGES = {
    "bytes": _bytes,
    "remove": lambda root, path: path.unlink(),
    "empty": lambda root, path: path.write_bytes(b""),
    "rename": lambda root, path, *name: path.rename(renamed(path, *name)),
    "copy": lambda root, path, *name: shutil.copyfile(path, renamed(path, *name)),
    "swap": _swap,
    "link": _link,
    "pipe": lambda root, path: _instead(path, os.mkfifo),
    "folder": lambda root, path: _instead(path, Path.mkdir),
}
NAMES_OF_CHANGES = frozenset(_CHANGES)


def apply_all(root: Path, changes: list[Change]) -> None:
    """Applies those of the changes that concern files."""
    for name, *arguments in changes:
        if name in _CHANGES:
            apply(root, name, *arguments)
