"""Draws recipes, examines them, and writes those that fail."""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .kind import NotApplicableError
from .kinds import KINDS
from .oracle import ViolationError, examine

CORPUS = Path(__file__).parent / "corpus"
MOST_CHANGES = 3


def recipes(kind: str) -> st.SearchStrategy[list]:
    """Strategy of lists of changes; most have one."""
    one = KINDS[kind].changes
    return st.one_of(*[st.lists(one, min_size=1, max_size=1)] * 4, st.lists(one, max_size=MOST_CHANGES))


def fuzz(
    kind: str, number: int, count: int, home: Path, before: Callable, after: Callable, end: float = math.inf
) -> None:
    """Examines a number of examples of a kind.

    Args:
      kind: the name of the kind.
      number: seed of the examples.
      count: number of examples.
      home: folder for temporary files.
      before: function that is called with each recipe before it is examined.
      after: function that is called with each recipe that fits the kind, and its failure or None.
      end: time of `time.monotonic` after which no example is examined.
    """

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], print_blob=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(recipes(kind))
    def example(changes: list) -> None:
        if time.monotonic() > end:
            return
        before(changes)
        failure = None
        try:
            examine(KINDS[kind], changes, home)
        except NotApplicableError:
            return
        except ViolationError as error:
            failure = error
        after(changes, failure)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example()


def shortest(kind: str, changes: list, failure: ViolationError, home: Path) -> tuple[list, ViolationError]:
    """The recipe without the changes that its failure does not need."""
    for index in range(len(changes) if len(changes) > 1 else 0):
        fewer = changes[:index] + changes[index + 1 :]
        try:
            examine(KINDS[kind], fewer, home)
        except NotApplicableError:
            continue
        except ViolationError as same:
            return shortest(kind, fewer, same, home)
    return changes, failure


def write_recipe(kind: str, changes: list, failure: str, folder: Path = CORPUS) -> Path:
    """Writes a recipe and the first line of its failure. The name of the file is a digest of the kind and that line."""
    line = failure.partition("\n")[0]
    name = f"{kind}-{hashlib.sha256(f'{kind} {line}'.encode()).hexdigest()[:8]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).exists():
        (folder / name).write_text(json.dumps({"kind": kind, "changes": changes, "failure": line}) + "\n")
    return folder / name
