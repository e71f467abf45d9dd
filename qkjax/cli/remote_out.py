"""Results on object stores: a command works in a local folder, which is uploaded when the command ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

from qkjax.errors import QkjaxError, first_line

OUT, TOGETHER = "--out", ("--shard", "--distributed")


@contextmanager
def local_out(options: list[str]) -> Iterator[list[str]]:
    """The options of a command, with a local folder in place of a URL after `--out`.

    The files at the URL are first copied to the local folder, so that a command can resume. When the command ends,
    fails or is interrupted, new and changed files are uploaded, files that the command removed are removed from the
    store, and the local folder is removed. If the process is killed, the local folder remains, and the same command on
    the same machine resumes from it.

    Raises:
      QkjaxError: the store cannot be reached, or several processes would share the URL.
    """
    joined = [part for option in options for part in _split(option)]
    places = [i + 1 for i, option in enumerate(joined[:-1]) if option == OUT and "://" in joined[i + 1]]
    if not places:
        yield options
        return
    url = joined[places[-1]]
    if shared := [option for option in joined if option in TOGETHER]:
        raise QkjaxError(
            f"--out {url} and {shared[0]} cannot be combined, because the processes share a folder: pass a folder of a "
            "file system as --out, for example a mounted bucket"
        )
    from platformdirs import user_cache_path

    from qkjax.images.remote import file_system

    folder = user_cache_path("qkjax") / "uploads" / sha256(url.encode()).hexdigest()[:16]
    system, root = file_system(url)
    stored = _reached(url, lambda: _download(system, root, folder))
    before = _state(folder)
    joined[places[-1]] = str(folder)
    try:
        yield joined
    finally:
        count = _reached(url, lambda: _upload(system, root, folder, stored, before))
        rmtree(folder, ignore_errors=True)
        print(f"uploaded {count} files to {url}", file=sys.stderr)


def _split(option: str) -> list[str]:
    return [OUT, option.removeprefix(f"{OUT}=")] if option.startswith(f"{OUT}=") else [option]


def _reached(url: str, work):
    try:
        return work()
    except QkjaxError:
        raise
    except Exception as error:  # every store has errors of its own
        reason = first_line(error)[:200]
        raise QkjaxError(f"cannot use {url}: {reason}; check the address and your credentials") from error


def _download(system, root: str, folder: Path) -> set[str]:
    """Downloads the files that the folder does not have; returns the names of all files at the URL."""
    names = {path.removeprefix(root).lstrip("/") for path in system.find(root)} - {""}
    for name in sorted(names):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", str(folder / name))
    return names


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file in a folder; hidden files, such as locks, are left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _upload(system, root: str, folder: Path, stored: set[str], before: dict) -> int:
    """Makes the URL equal to the folder; returns the number of uploaded files."""
    after = _state(folder)
    changed = [name for name, state in after.items() if name not in stored or before.get(name) != state]
    for name in changed:
        system.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        system.put_file(str(folder / name), f"{root}/{name}")
    for name in sorted(stored - set(after)):
        system.rm_file(f"{root}/{name}")
    return len(changed)
