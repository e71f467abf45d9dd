"""Where the files of checkpoints lie on this machine."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_cache_path

from qkjax.weights.catalogue.hub_cache import snapshot
from qkjax.weights.catalogue.lookup import entry


def folder() -> Path:
    """Where fetched checkpoints lie: `QKJAX_CHECKPOINTS`, else `checkpoints/` of the checkout that
    this package runs from, else the user's cache folder."""
    if chosen := os.environ.get("QKJAX_CHECKPOINTS"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "setup.cfg").is_file() and (checkout / "checkpoints" / "README.md").is_file():
        return checkout / "checkpoints"
    return user_cache_path("qkjax")


def path_of(name: str) -> Path:
    """Where a checkpoint lies once it is fetched; the path exists only if it is there and whole.

    A file of Google's storage lies under `gs/` at its path there, so that a mirror of the bucket
    serves, and a file of another server likewise under `https/`, one for all entries in it; a hub
    repository is a folder with config.json and weights, in `hf/`, laid out as huggingface_hub does.
    What is put there by hand is NAME.pth, what is converted from a package NAME.npz.
    """
    found = entry(name)
    if found.kind == "gs":
        return folder() / "gs" / found.path
    if found.kind == "hf":
        return snapshot(folder() / "hf", found.repo, (found.revision, found.safetensors))
    if found.kind == "https":
        parts = urlsplit(found.url)
        return folder() / "https" / parts.netloc.replace(":", "-") / parts.path.lstrip("/")
    return folder() / f"{found.name}{'.pth' if found.kind == 'hand' else '.npz'}"
