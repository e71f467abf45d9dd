"""Stores facts about a download in a small JSON file next to the download: url, date, size and sha256.

The record fixes the content: if another source has different bytes under the same name, qkjax reports this. If a file
has no record, the user put it there, and qkjax uses it without a check.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.weights.download.partial_file import digests, writing


def record_path(path: Path) -> Path:
    """The path of the record that belongs to a file or to a folder."""
    return path.with_name(f"{path.name}.source.json")


def write_record(path: Path, url: str, content: Path | None = None) -> None:
    """Writes a record of `path`, a file or the folder of a repository: its source and its hash.

    Args:
      path: the file or the folder.
      url: address from which it was downloaded.
      content: file that will be renamed to `path`; None if `path` exists already.

    Raises:
      QkjaxError: the folder cannot be written.
    """
    facts = {"url": url, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    content = content or path
    with writing(path):
        if content.is_dir():
            facts["files"] = {x.name: _facts(x) for x in sorted(content.iterdir())}
        else:
            facts |= _facts(content)
    with atomic_path(record_path(path)) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")


def _facts(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, **digests(file, ["sha256"])}


def read_record(path: Path) -> dict:
    """The record of `path`, or an empty dict if there is no record.

    Raises:
      QkjaxError: the record is damaged.
    """
    place = record_path(path)
    if place.exists() and not place.is_file():  # opening a pipe would block
        raise QkjaxError(f"{place} is not a file, expected the record of a download: remove it")
    try:
        facts = json.loads(place.read_bytes())
        if not all(isinstance(text, str) for text in (facts["url"], facts["date"], facts.get("sha256", ""))):
            raise TypeError("url, date and sha256 must be strings")
        return facts
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise QkjaxError(f"cannot read {place}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise QkjaxError(
            f"{place} is not a valid record of a download: delete this file, and the file next to it"
        ) from error


def other_source(path: Path, url: str) -> str:
    """The recorded source of `path` if it differs from `url`; otherwise "".

    Raises:
      QkjaxError: the record is damaged, or the file no longer has the recorded size.
    """
    facts = read_record(path) if path.exists() else {}
    if "size" in facts and facts["size"] != path.stat().st_size:
        raise QkjaxError(
            f"{path} has {path.stat().st_size} bytes, expected the {facts['size']} bytes that were downloaded: delete "
            "the file"
        )
    return facts["url"] if facts.get("url", url) != url else ""
