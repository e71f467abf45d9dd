"""Searches the catalogue."""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from qkjax.errors import QkjaxError
from qkjax.weights.catalogue.lookup import Entry, entries


def search(pattern: str = "", family: str | None = None, objective: str | None = None) -> dict[str, Entry]:
    """A dict from names to the entries that satisfy all criteria, in the order of the catalogue. Case is ignored.

    Args:
      pattern: a substring of the entry's name, alias, hub id or title. The pattern may also be a glob such as
        "siglip-*-256", which must match one of these completely. "" matches every entry.
      family: the family of models, such as "DINOv2".
      objective: the training objective, such as "contrastive".

    Raises:
      QkjaxError: no entry matches, or there is no such family or objective.

    Example:
      >>> from qkjax.weights.catalogue import search
      >>> list(search("dinov2-vits*"))
      ['dinov2-vits14-focus']
      >>> sorted({entry.objective for entry in search(family="dinov2").values()})
      ['self-distillation']
    """
    family = _known("family", family)
    objective = _known("objective", objective)
    chosen = {
        name: entry
        for name, entry in entries().items()
        if _matches(pattern, entry) and family in (None, entry.family) and objective in (None, entry.objective)
    }
    if chosen:
        return chosen
    criteria = {"pattern": pattern or None, "family": family, "objective": objective}
    given = ", ".join(f"{name} {value!r}" for name, value in criteria.items() if value)
    close = get_close_matches(pattern.lower(), entries(), n=3, cutoff=0.5) if pattern else []
    hint = f" (nearest: {', '.join(repr(name) for name in close)})" if close else ""
    raise QkjaxError(f"no model in the catalogue matches {given}{hint}; `qkjax models` lists all models")


def _matches(pattern: str, entry: Entry) -> bool:
    texts = [text.lower() for text in (entry.name, *entry.aliases, entry.repo, entry.title)]
    pattern = pattern.lower()
    if any(mark in pattern for mark in "*?["):
        return any(fnmatchcase(text, pattern) for text in texts)
    return any(pattern in text for text in texts)


def _known(field: str, value: str | None) -> str | None:
    """The value with the spelling of the catalogue."""
    if value is None:
        return None
    known = {getattr(entry, field).lower(): getattr(entry, field) for entry in entries().values()}
    if value.lower() not in known:
        raise QkjaxError(f"unknown {field} {value!r}; the catalogue has {', '.join(sorted(known.values()))}")
    return known[value.lower()]
