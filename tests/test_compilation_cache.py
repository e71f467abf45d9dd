"""The compilation cache: on by default, limited in size, never in the user's way, and safe from killed processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import DATA
from qkjax.runtime.compilation_cache import MAX_BYTES, MIN_SECONDS

ANALYZE = "import sys; sys.argv[1:] = ['analyze', {model!r}, '--out', {out!r}]; from qkjax.cli import main; main()"
KILLED_WHILE_WRITING = """
import os, signal
from jax._src import lru_cache
write = lru_cache.pathlib.Path.write_bytes
def write_half(path, data):
    write(path, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
type(lru_cache.pathlib.Path({folder!r})).write_bytes = write_half
"""
SETTINGS = ["jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs"]
REPORT = f"import jax; print(*(getattr(jax.config, name) for name in {SETTINGS}))"


@pytest.fixture
def run(tmp_path):
    """Runs Python code in a process whose cache folder is empty at first and that has no settings of JAX's cache."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k and "PERSISTENT_CACHE" not in k}
        env |= {"XDG_CACHE_HOME": str(tmp_path / "user"), "PYTHONWARNINGS": "default::UserWarning"} | environment
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=250, check=False)

    return run


def analyze(tmp_path: Path) -> str:
    return ANALYZE.format(model=str(DATA / "a.npz"), out=str(tmp_path / "out"))


def programs(folder: Path) -> dict[str, int]:
    """Names of the saved programs, and their sizes."""
    return {path.name: path.stat().st_size for path in folder.rglob("*-cache")}


@pytest.mark.slow
def test_programs_are_saved_and_read_again_without_a_word(run, tmp_path):
    first = run(analyze(tmp_path))
    assert first.returncode == 0, first.stderr
    saved = programs(tmp_path / "user" / "qkjax" / "programs")
    assert any(name.startswith("jit__measure-") for name in saved)
    again = run(analyze(tmp_path))
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, first.stderr)
    assert "jit__measure" not in "".join(set(programs(tmp_path / "user")) - set(saved)), "it was read"


@pytest.mark.slow
def test_a_process_killed_while_writing_breaks_no_later_one(run, tmp_path):
    """The half-written program is replaced, and no process prints a warning."""
    folder = tmp_path / "user" / "qkjax" / "programs"
    killed = run(KILLED_WHILE_WRITING.format(folder=str(tmp_path)) + analyze(tmp_path))
    assert killed.returncode == -signal.SIGKILL
    ((name, half),) = programs(folder).items()
    done = run(analyze(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "cache" not in done.stderr
    assert programs(folder)[name] == pytest.approx(2 * half, rel=0.05)
    (time_of_use,) = folder.rglob(name.removesuffix("-cache") + "-atime")
    time_of_use.unlink()  # killed between the two files: without repair, every later writing fails
    next(folder.rglob("jit__measure*-cache")).unlink()
    done = run(analyze(tmp_path))
    assert "cache" not in done.stderr
    assert any(name.startswith("jit__measure-") for name in programs(folder))


def test_settings_of_the_user_stay(run, tmp_path):
    """Of JAX, by environment or configuration, and of qkjax; in Python, the cache is turned on at the first use."""
    own = str(tmp_path / "own")
    use = "import qkjax; qkjax.analyze; "
    default = run(use + REPORT).stdout.split()
    assert Path(default[0]).parent == tmp_path / "user" / "qkjax" / "programs"
    assert [float(x) for x in default[1:]] == [MAX_BYTES, MIN_SECONDS]
    assert run(REPORT + "; " + use + REPORT).stdout.split()[3:] == default, "JAX was imported before"
    assert run(use + REPORT, QKJAX_COMPILATION_CACHE="off").stdout.split() == ["None", "-1", "1.0"]
    assert Path(run(use + REPORT, QKJAX_COMPILATION_CACHE=own).stdout.split()[0]).parent == Path(own)
    assert run(use + REPORT, JAX_COMPILATION_CACHE_DIR=own).stdout.split() == [own, "-1", "1.0"]
    configured = f"import jax; jax.config.update('jax_compilation_cache_dir', {own!r}); "
    assert run(configured + use + REPORT).stdout.split() == [own, "-1", "1.0"]
    assert run(use + REPORT, JAX_ENABLE_COMPILATION_CACHE="false").stdout.split()[0] == "None"


def test_folders_that_cannot_be_used(run, tmp_path):
    """A chosen folder is an error; without a folder of the user, everything runs as without a cache."""
    (tmp_path / "file").touch()
    done = run(analyze(tmp_path), QKJAX_COMPILATION_CACHE=str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"qkjax: error: QKJAX_COMPILATION_CACHE={tmp_path / 'file'}: cannot use this folder")
    assert done.stderr.count("\n") == 1
    done = run("import qkjax; qkjax.analyze; " + REPORT, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert done.stdout.split() == ["None", "-1", "1.0"]
    assert done.stderr == ""
