"""Asks servers whether they still have the files of the catalogue."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from qkjax.weights import catalogue
from qkjax.weights.catalogue import Entry
from qkjax.weights.catalogue.hub_cache import INDEX, PYTORCH, SINGLE
from qkjax.weights.download.address import address
from qkjax.weights.download.http import head

HUB = "https://huggingface.co"  # HF_ENDPOINT takes its place


def check_urls(names: Iterable[str]) -> list[tuple[str, str]]:
    """Asks every server whether it still has what the catalogue says; downloads nothing.

    Of a hub repository config.json and the weights are asked for. Entries from package indices are
    left out, since it is pip that knows where those are.

    Args:
      names: of entries.

    Returns:
      (name, problem) of those that have one.
    """
    found = [catalogue.entry(name) for name in names]
    found = [entry for entry in found if entry.kind != "pypi"]
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(_problem, found))
    return [(entry.name, problem) for entry, problem in zip(found, problems, strict=True) if problem]


def _problem(entry: Entry) -> str:
    """What is wrong with an entry's source, or ""; a hub repository's weights may be in any of three files."""
    if entry.kind != "hf":
        return head(address(entry))
    hub = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{entry.repo}/resolve"
    if problem := head(f"{hub}/{quote(entry.revision, safe='')}/config.json"):
        return f"config.json: {problem}"
    problem = ""
    for revision in filter(None, (entry.revision, entry.safetensors)):
        for file in (SINGLE, INDEX, PYTORCH):
            problem = head(f"{hub}/{quote(revision, safe='')}/{file}")
            if not problem:
                return ""
    return f"neither {SINGLE}, its index nor {PYTORCH}: {problem}"
