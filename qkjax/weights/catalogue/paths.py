"""Where the files of checkpoints lie on this machine."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_cache_path

from qkjax.weights.catalogue.hub_cache import snapshot
from qkjax.weights.catalogue.lookup import entry


def folder() -> Path:
    """The folder of downloaded checkpoints: `QKJAX_CHECKPOINTS`, else `checkpoints/` of the repository's
    checkout that this package runs from, else the user's cache folder."""
    if chosen := os.environ.get("QKJAX_CHECKPOINTS"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "setup.cfg").is_file() and (checkout / "checkpoints" / "README.md").is_file():
        return checkout / "checkpoints"
    return user_cache_path("qkjax")


def path_of(name: str) -> Path:
    """The path of a downloaded checkpoint; it exists only if the download is complete.

    Files of Google's storage keep their path below `gs/`, so a mirror of the bucket can be put there; files of
    other servers keep theirs below `https/`, and entries that share a file share the download. A hub repository
    is a folder with config.json and weights below `hf/`, in the layout of huggingface_hub. Files that a person
    downloads are NAME.pth, files that are converted from a package NAME.npz.

    Raises:
      QkjaxError: not in the catalogue.
    """
    match = entry(name)
    if match.kind == "gs":
        return folder() / "gs" / match.path
    if match.kind == "hf":
        return snapshot(folder() / "hf", match.repo, (match.revision, match.safetensors))
    if match.kind == "https":
        parts = urlsplit(match.url)
        return folder() / "https" / parts.netloc.replace(":", "-") / parts.path.lstrip("/")
    return folder() / f"{match.name}{'.pth' if match.kind == 'hand' else '.npz'}"
