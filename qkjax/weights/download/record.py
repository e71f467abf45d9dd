"""What is known of a download, in a small JSON file next to it: url, date, size and sha256.

The record pins the content: another source that has other bytes under the same name is reported. A file without a
record was put there by hand, and is used as it is.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path
from qkjax.weights.download.partial_file import digests, writing


def record_path(path: Path) -> Path:
    """The path of the record of a file, or of a folder."""
    return path.with_name(f"{path.name}.source.json")


def write_record(path: Path, url: str) -> None:
    """Records where `path`, a file or the folder of a repository, came from, and its content.

    Raises:
      QkjaxError: the folder cannot be written.
    """
    facts = {"url": url, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    with writing(path):
        facts |= {"files": {x.name: _facts(x) for x in sorted(path.iterdir())}} if path.is_dir() else _facts(path)
    with atomic_path(record_path(path)) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")


def _facts(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, **digests(file, ["sha256"])}


def read_record(path: Path) -> dict:
    """The record of `path`; empty if there is none.

    Raises:
      QkjaxError: the record is damaged.
    """
    place = record_path(path)
    try:
        facts = json.loads(place.read_bytes())
        if not all(isinstance(text, str) for text in (facts["url"], facts["date"], facts.get("sha256", ""))):
            raise TypeError("url, date and sha256 are texts")
        return facts
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise QkjaxError(f"cannot read {place}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise QkjaxError(f"{place} is not the record of a download: delete it, and the file next to it") from error


def other_source(path: Path, url: str) -> str:
    """The source of `path` if it is recorded and is not `url`, else "".

    Raises:
      QkjaxError: the record is damaged, or the file no longer has the recorded size.
    """
    facts = read_record(path) if path.exists() else {}
    if "size" in facts and facts["size"] != path.stat().st_size:
        raise QkjaxError(
            f"{path} has {path.stat().st_size} bytes, expected the {facts['size']} that were downloaded: delete it"
        )
    return facts["url"] if facts.get("url", url) != url else ""
