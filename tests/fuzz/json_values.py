"""Changes of JSON documents: values of other types, huge and missing ones, and texts that are not JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from .files import INDEX, files_of
from .kind import change, pick

VALUES = [None, True, False, 0, 1, -1, 2, 3, 7, 16, 2**31, 2**63, 10**40, 0.5, 1.5, -0.0, 1e-300, 1e300,
          float("nan"), float("inf"), "", "0", "x", "\u202e\x1b[31m", "\ud800", "x" * 5000, [], [0], [1, 2], [None],
          [[]], [0.5, 0.5, 0.5], [0, 0, 0], [1, "x", None], {}, {"x": 1}, {"height": -1}, {"height": 32, "width": 8},
          {"shortest_edge": 10**12}, "gelu", "relu", "vit", "bilinear"]  # fmt: skip
TEXTS = ["", " ", "null", "[]", "0", '"x"', "{", "{}", "{}{}", '{"a": NaN}', "[" * 50000, '{"a":' * 5000, "\ufeff{}",
         '{"a": 1' + "0" * 5000 + "}", "\x00"]  # fmt: skip
HOW = ("set", "remove", "rename", "add", "number", "twice")
CHANGES = st.one_of(
    *[change("json", INDEX, INDEX, st.sampled_from(HOW), st.integers(0, len(VALUES) - 1))] * 3,
    change("json text", INDEX, st.integers(0, len(TEXTS) - 1)),
)
NUMBERS = (lambda x: -x, lambda x: x + 1, lambda x: x * 2, lambda x: x / 2, str, lambda x: [x],
           lambda x: x * 10**12, lambda x: x + 0.5, float, lambda x: 0, lambda x: x - 1)  # fmt: skip


def apply(root: Path, name: str, index: int, *arguments, suffix: str = ".json") -> None:
    """Applies one of `CHANGES` to one of the JSON files of a folder, or to a file."""
    path = pick(index, [path for path in files_of(root) if path.name.endswith(suffix) or path == root])
    if name == "json text":
        path.write_text(TEXTS[arguments[0]], errors="surrogatepass")
    else:
        path.write_text(changed(path.read_text(), *arguments))


def changed(text: str, place: int, how: str, value: int) -> str:
    """A JSON document with one change at one of its values."""
    document = json.loads(text)
    container, key = pick(place, list(_places(document)))
    if how == "remove":
        del container[key]
    elif how == "number" and isinstance(container[key], int | float):
        container[key] = NUMBERS[value % len(NUMBERS)](container[key])
    elif how == "rename" and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif how == "add" and isinstance(container, dict):
        container["extra"] = VALUES[value]
    elif how == "twice" and isinstance(container, dict):
        return json.dumps(document).replace("{", "{" + json.dumps({key: VALUES[value]})[1:-1] + ", ", 1)
    else:
        container[key] = VALUES[value]
    return json.dumps(document)


def _places(value) -> Iterator[tuple]:
    """Every container in a document, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
    for key in keys:
        yield from _places(value[key])
