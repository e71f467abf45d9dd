"""What one kind of input consists of: how it is made, changed, used, and checked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

Change = list
"""A change in JSON: its name, and its arguments."""


class NotApplicableError(Exception):
    """A change does not fit the input, as when an earlier change removed a file."""


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
      make: writes the input with changes to an empty folder; returns the path that `run` takes.
      changes: strategy of one change.
      run: uses the input at a path as a user would; the second argument is an empty folder for outputs.
      check: asserts that the result of `run` is right for the input at a path. It receives the path, the changes, and
        the result.
      writes: whether `run` may write to the folder of the input, as when it resumes a training run.
    """

    make: Callable[[Path, Sequence[Change]], Path]
    changes: st.SearchStrategy[Change]
    run: Callable[[Path, Path], Any]
    check: Callable[[Path, Sequence[Change], Any], None]
    writes: bool = False


def change(name: str, *arguments: st.SearchStrategy) -> st.SearchStrategy[Change]:
    """Strategy of changes of one name."""
    return st.tuples(*arguments).map(lambda values: [name, *values])


def pick(index: int, items: Sequence):
    """One of the items.

    Raises:
      NotApplicableError: there is no item.
    """
    if not items:
        raise NotApplicableError("nothing to change")
    return items[index % len(items)]
