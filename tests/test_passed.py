"""The choice of the tests that CI runs a second time."""

from types import SimpleNamespace

from passed import Passed


def alone(tmp_path):
    """A test that needs nothing else."""


def with_library(torch):
    """A test with a fixture that an extra provides."""


def run(path, items: dict, outcomes: dict) -> list[str]:
    """The names of the tests that a run with `QKJAX_PASSED=path` does not leave out."""
    plugin, deselected = Passed(path), []
    tests = [SimpleNamespace(nodeid=name, function=test, fixturenames=[]) for name, test in items.items()]

    def deselect(items: list) -> None:
        deselected.extend(items)

    hook = SimpleNamespace(pytest_deselected=deselect)
    plugin.pytest_collection_modifyitems(SimpleNamespace(hook=hook), tests)
    for name, when, passed in [(name, *outcome) for name, outcome in outcomes.items()]:
        plugin.pytest_runtest_logreport(SimpleNamespace(nodeid=name, when=when, passed=passed))
    plugin.pytest_sessionfinish(SimpleNamespace(config=SimpleNamespace()))
    assert len(tests) + len(deselected) == len(items)
    return [test.nodeid for test in tests]


def test_tests_that_passed_run_again_only_with_an_optional_library(tmp_path):
    path = tmp_path / "passed"
    items = {"passed": alone, "skipped": alone, "failed": alone, "library": with_library}
    outcomes = {
        "passed": ("call", True), "skipped": ("setup", False), "failed": ("call", False), "library": ("call", True)
    }  # fmt: skip
    assert run(path, items, outcomes) == list(items)
    assert run(path, items, {}) == ["skipped", "failed", "library"]
    assert run(path, {**items, "new": alone}, {}) == ["skipped", "failed", "library", "new"]
