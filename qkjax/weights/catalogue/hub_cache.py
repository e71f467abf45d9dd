"""Repositories of the Hugging Face hub on disk, in the cache layout of huggingface_hub."""

import json
from pathlib import Path

SINGLE, INDEX, PYTORCH = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def snapshot(cache: Path, repo: str, revisions: tuple[str, ...]) -> Path:
    """The folder of the first revision that is complete on disk; a path that does not exist if none is complete.

    The function parses the cache layout itself, since huggingface_hub may not be installed.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    for revision in filter(None, revisions):
        reference = root / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        if _is_complete(root / "snapshots" / commit):
            return root / "snapshots" / commit
    return root / "snapshots" / "not fetched"


def _is_complete(folder: Path) -> bool:
    """Whether config.json and all weights exist; huggingface_hub names a file only when it is complete."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        try:
            shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            return True  # the published index is invalid: the reader reports this, and another download would not help
        return all((folder / shard).is_file() for shard in shards)
    single = [path for path in folder.glob("*.safetensors") if "-of-" not in path.name]  # a shard is only a part
    return (folder / PYTORCH).is_file() or bool(single)
