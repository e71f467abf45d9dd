"""The distribution: a wheel and an sdist that are complete, and a wheel that works outside of the checkout."""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import DATA

ROOT = Path(__file__).parents[1]
DATA_FILES = ("qkjax/py.typed", "qkjax/weights/catalogue/catalogue.toml", "qkjax/report/site/page.html",
              "qkjax/report/site/main.js", "qkjax/report/site/style.css")  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("build"), reason="needs the package build: pip install -e '.[test]'"),
]


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Wheel and sdist, built from a copy of what is in the repository, without downloads."""
    source, out = tmp_path_factory.mktemp("source") / "qkjax", tmp_path_factory.mktemp("dist")
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "qkjax", source / "qkjax", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_both_are_complete_and_pass_twine_check(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    for name in DATA_FILES:
        assert name in names
        assert name in members
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True, timeout=100)


def test_the_wheel_works_outside_of_the_checkout(dist, tmp_path):
    """In a fresh virtualenv, which has the libraries of this one, but not its editable install."""
    venv.create(tmp_path / "venv", with_pip=True)
    python, (wheel,) = tmp_path / "venv" / "bin" / "python", dist.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, timeout=200)
    own = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    # A path in a .pth file is appended: the wheel comes first, and .pth files in these folders are not read.
    (Path(own) / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import qkjax, importlib.metadata as m; print(qkjax.__file__, m.version('qkjax'))"
    found = subprocess.check_output([python, "-c", code], text=True, cwd=tmp_path, env=environment)
    assert Path(found.split()[0]).resolve().is_relative_to(Path(own).resolve()), found
    command = [tmp_path / "venv" / "bin" / "qkjax", "analyze", DATA / "a.npz", "--out", tmp_path / "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "modes.nc").exists()
    assert (tmp_path / "out" / "cosine_by_layer.pdf").exists()
