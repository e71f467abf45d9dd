"""The examples in docstrings run, and every public function and class has one."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import qkjax

PACKAGE = Path(qkjax.__file__).parent


def docstrings(path: Path) -> dict[str, str]:
    """Those with an example, by the name of what they describe."""
    kinds = ast.FunctionDef | ast.ClassDef | ast.Module
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    texts = {getattr(node, "name", path.stem): ast.get_docstring(node) or "" for node in nodes}
    return {name: text for name, text in texts.items() if ">>> " in text}


MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if docstrings(path)
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, default, tmp_path, monkeypatch):
    """Found in the source, since decorators may hide docstrings from `doctest.testmod`."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for label, text in docstrings(Path(module.__file__)).items():
        runner.run(doctest.DocTestParser().get_doctest(text, dict(vars(module)), label, module.__file__, 0))
    assert runner.tries
    assert runner.failures == 0


def test_every_public_name_has_an_example():
    without = set()
    for name in qkjax.__all__:
        value = getattr(qkjax, name)
        value = value.__call__ if inspect.ismodule(value) and callable(value) else value
        if not inspect.ismodule(value) and ">>> " not in (inspect.getdoc(value) or ""):
            without.add(name)
    assert not without
