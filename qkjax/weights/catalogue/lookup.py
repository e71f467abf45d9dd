"""The entries of the catalogue, and the names that refer to them."""

import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from qkjax.errors import QkjaxError, nearest
from qkjax.weights.catalogue import augreg_names

OBJECTIVES = ("classification", "self-distillation", "contrastive", "masked image modelling", "joint embedding")
_ADDRESS = re.compile(r"gs://|https://storage\.googleapis\.com/|https://huggingface\.co/")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r".*\.(npz\b.*|safetensors|json|bin|pth?|onnx|zarr)")  # "x.npz-000012345" is a file of big_vision


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue; see the head of `catalogue.toml` for the meaning of the values.

    The fields from `kind` to `member` are the entry's `source`; those that its kind does not have
    are empty. `bytes` and `heads` are 0 where they are not published, or seen in the file itself.
    """

    name: str
    title: str
    family: str
    objective: str
    resolution: int
    pool: str
    preprocess: str
    licence: str
    facts: str
    kind: str
    path: str = ""
    sub: str | None = None
    repo: str = ""
    revision: str = ""
    safetensors: str = ""
    url: str = ""
    package: str = ""
    version: str = ""
    wheel: str = ""
    sha256: str = ""
    member: str = ""
    bytes: int = 0
    heads: int = 0
    aliases: tuple[str, ...] = ()
    unsupported: str = ""
    note: str = ""


@cache
def entries() -> dict[str, Entry]:
    """The whole catalogue by name."""
    table = tomllib.loads(resources.files("qkjax.weights.catalogue").joinpath("catalogue.toml").read_text())
    return {name: _entry(name, values) for name, values in table.items()}


def _entry(name: str, values: dict) -> Entry:
    source, aliases = values.pop("source"), tuple(values.pop("aliases", ()))
    return Entry(name=name, aliases=aliases, **source, **values)


@cache
def _index() -> dict[str, Entry]:
    """Every text that means an entry: name, alias, hub id, path in Google's storage."""
    index = {}
    for name, found in entries().items():
        sub_model = f"{found.path}:{found.sub}" if found.sub else ""
        index |= {text: found for text in (name, *found.aliases, found.repo, found.path, sub_model) if text}
    return index


def _find(text: str) -> Entry | None:
    """The entry that `text` means, also of a file or hub repository that is not in the catalogue."""
    known = _ADDRESS.sub("", text, count=1) if _ADDRESS.match(text) else text
    if known in _index():
        return _index()[known]
    if name := augreg_names.stem(known):
        return _index().get(f"{augreg_names.FOLDER}{name}.npz") or Entry(**augreg_names.fields(name))
    if _HUB_ID.fullmatch(known) and not _FILE.fullmatch(known) and not text.startswith(("gs:", "https://storage.")):
        return _hub_entry(known)
    return None


def _hub_entry(repo: str) -> Entry:
    """A repository of the Hugging Face hub of which nothing is known but its id."""
    unknown = dict.fromkeys(("family", "objective", "pool", "preprocess", "licence", "facts"), "not stated")
    return Entry(name=repo, title=repo, resolution=0, kind="hf", repo=repo, revision="main", **unknown)


def is_name(text: str) -> bool:
    """Whether `text` is meant as a name, not as a path.

    Names of the catalogue come first, then what is on disk. A hub id that is not in the catalogue
    counts as a name unless its owner is a folder here: "checkpoints/vit" is then a mistyped path.

    Raises:
      QkjaxError: like no path, and not in the catalogue; says the nearest name.
    """
    if text in entries():
        return True
    # a tensorstore checkpoint is named through its -LAST file
    if os.path.exists(text) or os.path.exists(f"{text}-LAST"):
        return False
    found = _find(text)
    if found:
        return found.name != text or found.kind != "hf" or not os.path.isdir(os.path.dirname(text))
    if any(mark in text for mark in (os.sep, "/", ".", ":")):
        return False
    raise _unknown(text)


def entry(name: str) -> Entry:
    """One entry, by its name, an alias, a hub id, its address, or the file name of an AugReg model.

    Raises:
      QkjaxError: not in the catalogue; says the nearest name.
    """
    found = _find(name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> QkjaxError:
    longer = [known for known in _index() if known.startswith(name)]
    hint = nearest(name, longer) or nearest(name, _index())
    return QkjaxError(f"no model {name!r} in the catalogue{hint}; `qkjax models` lists them all")


def supported(name: str) -> Entry:
    """One entry, as `entry` finds it, that `load` can read.

    Raises:
      QkjaxError: not in the catalogue, or listed but not supported; says why.
    """
    found = entry(name)
    if found.unsupported:
        raise QkjaxError(f"{found.name} cannot be loaded: {found.unsupported}")
    return found
