"""Looks up entries of the catalogue by name."""

import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from qkjax.errors import QkjaxError, nearest
from qkjax.weights.catalogue import augreg_names

OBJECTIVES = ("classification", "self-distillation", "distillation", "contrastive", "language modelling",
              "masked image modelling", "joint embedding")  # fmt: skip
_ADDRESS = re.compile(r"gs://|https://storage\.googleapis\.com/|https://huggingface\.co/")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r".*\.(npz\b.*|safetensors|json|bin|pth?|onnx|zarr)")  # "x.npz-000012345" is a file of big_vision


@dataclass(frozen=True)
class Entry:
    """An entry of the catalogue. The comment at the top of `catalogue.toml` explains the fields.

    The fields from `kind` to `member` are the entry's `source`; fields that do not apply to this kind of source are
    empty. `bytes` is 0 if the size is not published. `heads` is 0 if the file itself states the number of heads.
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
    """All entries of the catalogue: a dict from names to entries."""
    table = tomllib.loads(resources.files("qkjax.weights.catalogue").joinpath("catalogue.toml").read_text())
    return {name: _entry(name, values) for name, values in table.items()}


def _entry(name: str, values: dict) -> Entry:
    source, aliases = values.pop("source"), tuple(values.pop("aliases", ()))
    return Entry(name=name, aliases=aliases, **source, **values)


@cache
def _index() -> dict[str, Entry]:
    """A dict from each name, alias, hub id and path in Google's storage to the entry that it refers to."""
    index = {}
    for name, entry in entries().items():
        submodel = f"{entry.path}:{entry.sub}" if entry.sub else ""
        index |= {text: entry for text in (name, *entry.aliases, entry.repo, entry.path, submodel) if text}
    return index


def _find(text: str) -> Entry | None:
    """The entry to which `text` refers. AugReg files and hub repositories outside the catalogue get a new entry."""
    known = _ADDRESS.sub("", text, count=1) if _ADDRESS.match(text) else text
    if known in _index():
        return _index()[known]
    if name := augreg_names.stem(known):
        return _index().get(f"{augreg_names.FOLDER}{name}.npz") or Entry(**augreg_names.fields(name))
    if _HUB_ID.fullmatch(known) and not _FILE.fullmatch(known) and not text.startswith(("gs:", "https://storage.")):
        return _hub_entry(known)
    return None


def _hub_entry(repo: str) -> Entry:
    """Makes an entry for a Hugging Face repository that is not in the catalogue, of which only the id is known."""
    unknown = dict.fromkeys(("family", "objective", "pool", "preprocess", "licence", "facts"), "not stated")
    return Entry(name=repo, title=repo, resolution=0, kind="hf", repo=repo, revision="main", **unknown)


def is_name(text: str) -> bool:
    """Whether `text` is a name rather than a path.

    Names in the catalogue take precedence over existing paths. A hub id "owner/name" that is not in the catalogue
    counts as a name, unless there is a folder called "owner": the text is then a mistyped path.

    Raises:
      QkjaxError: the text is not in the catalogue and does not look like a path; the message suggests the nearest name.
    """
    if text in entries():
        return True
    # the user may refer to a tensorstore checkpoint by the name of its -LAST file
    if os.path.exists(text) or os.path.exists(f"{text}-LAST"):
        return False
    match = _find(text)
    if match:
        return match.name != text or match.kind != "hf" or not os.path.isdir(os.path.dirname(text))
    if any(mark in text for mark in (os.sep, "/", ".", ":")):
        return False
    raise _unknown(text)


def entry(name: str) -> Entry:
    """The entry with this name, alias, hub id or address, or the entry of the AugReg file with this name.

    Raises:
      QkjaxError: the name is not in the catalogue; the message suggests the nearest name.
    """
    match = _find(name)
    if match is None:
        raise _unknown(name)
    return match


def _unknown(name: str) -> QkjaxError:
    longer = [known for known in _index() if known.startswith(name)]
    hint = nearest(name, longer) or nearest(name, _index())
    return QkjaxError(f"no model {name!r} in the catalogue{hint}; `qkjax models` lists all models")


def supported(name: str) -> Entry:
    """Returns the same as `entry`, but raises an error for entries that `load` cannot read.

    Raises:
      QkjaxError: the name is not in the catalogue, or `load` cannot read the checkpoint; the message states the reason.
    """
    match = entry(name)
    if match.unsupported:
        raise QkjaxError(f"{match.name} cannot be loaded: {match.unsupported}")
    return match
