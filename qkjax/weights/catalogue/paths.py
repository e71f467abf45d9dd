"""The paths of checkpoints on this machine."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_cache_path

from qkjax.weights.catalogue.hub_cache import is_offline, snapshot, user_cache
from qkjax.weights.catalogue.lookup import entry


def folder() -> Path:
    """The folder of downloaded checkpoints.

    If the environment variable `QKJAX_CHECKPOINTS` is set, its value is the folder. Otherwise, the folder is
    `checkpoints/` in the Git checkout that contains this package, or the user's cache folder if there is no Git
    checkout.
    """
    if chosen := os.environ.get("QKJAX_CHECKPOINTS"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "setup.cfg").is_file() and (checkout / "checkpoints" / "README.md").is_file():
        return checkout / "checkpoints"
    return user_cache_path("qkjax")


def path_of(name: str) -> Path:
    """The path of a downloaded checkpoint. The path exists only if the download is complete.

    Files from Google's storage are below `gs/`, under their path in the storage, so users can put a mirror of the
    storage there. Files from other servers are below `https/`, under their path on the server, and entries with the
    same file share the download. A hub repository is a folder below `hf/` that contains config.json and weights, in the
    layout of huggingface_hub. If `HF_HUB_OFFLINE` is set, repositories in the user's cache of huggingface_hub are used,
    too. A file that the user downloads in a browser is called NAME.pth. A file that is converted from a package is
    called NAME.npz.

    Raises:
      QkjaxError: the name is not in the catalogue.
    """
    match = entry(name)
    if match.kind == "gs":
        return folder() / "gs" / match.path
    if match.kind == "hf":
        revisions = (match.revision, match.safetensors)
        path = snapshot(folder() / "hf", match.repo, revisions)
        shared = snapshot(user_cache(), match.repo, revisions) if is_offline() and not path.exists() else path
        return shared if shared.exists() else path
    if match.kind == "https":
        parts = urlsplit(match.url)
        return folder() / "https" / parts.netloc.replace(":", "-") / parts.path.lstrip("/")
    return folder() / f"{match.name}{'.pth' if match.kind == 'hand' else '.npz'}"
