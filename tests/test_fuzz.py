"""A few hundred mutated inputs with a fixed seed, and the failures of the past."""

import json
import os

import pytest
from fuzz.fuzzing import CORPUS, fuzz
from fuzz.kind import NotApplicableError
from fuzz.kinds import KINDS
from fuzz.oracle import examine

from conftest import NEEDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes, alarms and names of bytes")

COUNT = 25
FEWER = {"runs": 4, "options": 12, "results": 10}
"""Numbers of examples of kinds whose examples take long."""


def need(kind: str) -> None:
    """Skips a test whose kind needs a library that is not installed."""
    if kind == "torch":
        pytest.importorskip("torch", reason=NEEDS)


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_input(kind, tmp_path):
    need(kind)
    assert examine(KINDS[kind], [], tmp_path) == "right"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs(kind, tmp_path):
    need(kind)
    failures = []
    after = lambda changes, failure: failures.append((changes, failure)) if failure else None
    fuzz(kind, 0, FEWER.get(kind, COUNT), tmp_path, lambda changes: None, after)
    assert not failures


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_earlier_failures(path, tmp_path):
    recipe = json.loads(path.read_text())
    need(recipe["kind"])
    try:
        examine(KINDS[recipe["kind"]], recipe["changes"], tmp_path)
    except NotApplicableError as error:
        pytest.skip(f"the recipe no longer fits: {error}")
