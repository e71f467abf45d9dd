"""One table of ratios out of all benchmarks, and the versions of the libraries that were measured."""

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class Line(NamedTuple):
    """Ours beside another way to the same end, both in seconds for the same work.

    Attributes:
      what: is done.
      ours, theirs: seconds.
      peer: the other way.
    """

    what: str
    ours: float
    peer: str
    theirs: float


def markdown(lines: Sequence[Line]) -> str:
    """`times as fast` is theirs over ours, above 1 where ours is faster; beside a floor, the share of it reached."""
    rows = [f"| {x.what} | {x.ours:.3g} | {x.peer} | {x.theirs:.3g} | {x.theirs / x.ours:.3g} |" for x in lines]
    return "\n".join(["| | ours, s | beside | s | times as fast |", "|---|---|---|---|---|", *rows])


def versions(libraries: Iterable[str]) -> list[str]:
    """The name and the version of each library, for example "jax 0.11.2"; "not installed" for a missing library."""
    found = []
    for name in libraries:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return found
