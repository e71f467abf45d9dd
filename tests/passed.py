"""Leaves out tests that an earlier run has passed, so that CI runs a test twice only if new packages can change it.

With `QKJAX_PASSED=FILE`, pytest does not run the tests that FILE lists, and adds the tests that pass. A listed test
runs again if its text names a library of the extras, because such a test may check less without the library.
"""

import inspect
import re
from pathlib import Path

import pytest

OPTIONAL = re.compile(
    "torch|timm|transformers|onnxruntime|equimo|equinox|open_clip|moto|fsspec|s3|datasets|importorskip|find_spec"
)


class Passed:
    """The plugin; with pytest-xdist, workers leave tests out, and the main process writes the file."""

    def __init__(self, path: Path):
        self.path, self.new = path, set()
        self.before = set(path.read_text("utf-8").split("\n")) if path.exists() else set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        again = [item.nodeid not in self.before or bool(OPTIONAL.search(source(item))) for item in items]
        config.hook.pytest_deselected(items=[item for item, runs in zip(items, again, strict=True) if not runs])
        items[:] = [item for item, runs in zip(items, again, strict=True) if runs]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.new.add(report.nodeid)

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"):
            self.path.write_text("\n".join(sorted(self.before | self.new)), "utf-8")


def source(item: pytest.Item) -> str:
    """The text of a test function, with the names of its fixtures; empty for tests of other kinds."""
    function = getattr(item, "function", None)
    return " ".join([inspect.getsource(function), *item.fixturenames]) if function else ""
