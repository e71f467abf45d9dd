"""What keeps the code simple: start-up time, imports that point one way, and style."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qkjax

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "flax", "numpy", "matplotlib", "xarray", "scipy", "tensorstore", "onnx", "safetensors", "PIL")


def test_start_up_imports_nothing_heavy():
    """`qkjax --help` answers in well under half a second since none of these is imported.

    The imports are what is asserted; the clock of a busy machine would make a test fail by chance.
    """
    code = f"import sys, qkjax, qkjax.cli; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "qkjax", "--help"], capture_output=True, text=True, check=True)
    print(f"qkjax --help: {time.perf_counter() - start:.2f} s")
    assert "analyze" in done.stdout


def test_public_names():
    for name in qkjax.__all__:
        assert getattr(qkjax, name).__doc__, name
    assert set(qkjax.__all__) <= set(dir(qkjax))
    with pytest.raises(AttributeError, match="no attribute 'decompse'"):
        _ = qkjax.decompse


def test_lines_of_the_page_are_as_short_as_those_of_the_rest():
    for path in (ROOT / "qkjax" / "report" / "site").iterdir():
        long = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
        assert not long, f"{path}: {long}"


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"]])
def test_style(command):
    subprocess.run([sys.executable, "-m", *command, "."], cwd=ROOT, check=True)


def test_imports_point_one_way():
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, check=True)


LATE_IMPORTS = {
    (
        "qkjax/train/__init__.py",
        "qkjax.train.run",
    ): "the package can be called, and imports no jax by itself",
    ("qkjax/train/config.py", "qkjax.train.constraints"): "the configuration is read for --help, constraints need jax",
    (
        "qkjax/weights/download/fetch.py",
        "qkjax.weights.download.wheel",
    ): "converts, and so needs jax; other downloads do not",
}
"""(file, module) of imports of qkjax within functions, with the reason."""


def imports_within_functions(path: Path) -> set[str]:
    """Modules of qkjax that functions of a file import."""
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    nodes = [node for function in functions for node in ast.walk(function)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {f"{'.' * n.level}{n.module or ''}" for n in nodes if isinstance(n, ast.ImportFrom)}
    return {module for module in modules if module.startswith(("qkjax", "."))}


def test_functions_import_no_module_of_qkjax():
    """An import inside a function hides a circle; only the command line may: `qkjax --help` must be quick."""
    package = ROOT / "qkjax"
    files = [p for p in package.rglob("*.py") if package / "cli" not in p.parents and p != package / "__init__.py"]
    late = {(str(p.relative_to(ROOT)), module) for p in files for module in imports_within_functions(p)}
    assert late == set(LATE_IMPORTS)


def test_files_and_functions_are_short():
    """No file has more than 250 lines, no body of a function more than 40, its docstring apart."""
    long = []
    for path in (ROOT / "qkjax").rglob("*.py"):
        text = path.read_text()
        long += [f"{path}: {len(text.splitlines())} lines"] if len(text.splitlines()) > 250 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                long += [f"{path}: {node.name} has {lines} lines"] if lines > 40 else []
    assert not long
