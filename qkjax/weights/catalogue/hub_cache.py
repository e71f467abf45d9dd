"""Finds repositories of the Hugging Face hub on disk, in the cache layout of huggingface_hub."""

import json
import os
from pathlib import Path

from qkjax.weights.formats.file_names import FILES, INDEXES

CONFIGS = ("config.json", "open_clip_config.json")


def is_offline() -> bool:
    """Whether the user forbids connections, according to the environment variables that huggingface_hub reads."""
    stated = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return stated.upper() in ("1", "ON", "YES", "TRUE")


def user_cache() -> Path:
    """The hub cache that the user's other programs share; the environment variables of huggingface_hub determine it."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(chosen)))


def unverified(folder: Path) -> Path:
    """The path of a marker file, which exists until a downloaded snapshot has been verified."""
    return folder.with_name(f"{folder.name}.unverified")


def snapshot(cache: Path, repo: str, revisions: tuple[str, ...]) -> Path:
    """The folder of the first revision that is complete on disk, or a nonexistent path if no revision is complete.

    The function reads the cache layout itself, because huggingface_hub may not be installed.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    for revision in filter(None, revisions):
        reference = root / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        if _is_complete(root / "snapshots" / commit):
            return root / "snapshots" / commit
    return root / "snapshots" / "not fetched"


def _is_complete(folder: Path) -> bool:
    """Whether a configuration and all weights exist. huggingface_hub gives only complete files their final names."""
    if unverified(folder).exists() or not any((folder / name).is_file() for name in CONFIGS):
        return False
    named = next((name for name in FILES if (folder / name).is_file()), None)
    if named in INDEXES:
        try:
            shards = set(json.loads((folder / named).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            return True  # the published index is invalid: `load` reports this, and another download would not help
        return all((folder / shard).is_file() for shard in shards)
    single = [path for path in folder.glob("*.safetensors") if "-of-" not in path.name]  # a shard is only a part
    return named is not None or bool(single)
