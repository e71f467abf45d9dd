"""Checks whether the files of the catalogue are still on their servers."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from qkjax.weights import catalogue
from qkjax.weights.catalogue import Entry
from qkjax.weights.download.address import address, hub_address
from qkjax.weights.download.http import head
from qkjax.weights.formats.file_names import FILES


def check_urls(names: Iterable[str]) -> list[tuple[str, str]]:
    """Checks, without downloads, whether the files of entries are still on their servers.

    For a hub repository, the function checks config.json and the weights. The function skips entries from package
    indexes, because only pip knows their addresses.

    Args:
      names: names of entries.

    Returns:
      A tuple (name, problem) for each entry that has a problem.

    Raises:
      QkjaxError: a name is not in the catalogue.
    """
    entries = [entry for entry in map(catalogue.entry, names) if entry.kind != "pypi"]
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(_problem, entries))
    return [(entry.name, problem) for entry, problem in zip(entries, problems, strict=True) if problem]


def _problem(entry: Entry) -> str:
    """Describes the problem with an entry's source, or "". A hub repository must contain one of `FILES`."""
    if entry.kind != "hf":
        return head(address(entry))
    hub = f"{hub_address()}/{entry.repo}/resolve"
    if problem := head(f"{hub}/{quote(entry.revision, safe='')}/config.json"):
        return f"config.json: {problem}"
    problem = ""
    for revision in filter(None, (entry.revision, entry.safetensors)):
        for file in FILES:
            problem = head(f"{hub}/{quote(revision, safe='')}/{file}")
            if not problem:
                return ""
    return f"none of {', '.join(FILES)}: {problem}"
