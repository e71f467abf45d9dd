"""Repositories of the Hugging Face hub on disk, in the layout that huggingface_hub gives its cache."""

import json
from pathlib import Path

SINGLE, INDEX, PYTORCH = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def snapshot(cache: Path, repo: str, revisions: tuple[str, ...]) -> Path:
    """The folder of a repository's files: the first revision that is whole on disk, else a path that is not there.

    Read from the layout of the cache, since huggingface_hub may not be installed where the files are.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    for revision in filter(None, revisions):
        reference = root / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        if _is_whole(root / "snapshots" / commit):
            return root / "snapshots" / commit
    return root / "snapshots" / "not fetched"


def _is_whole(folder: Path) -> bool:
    """Whether config and all weights are there; the library gives a file its name once it is complete."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        try:
            shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            return True  # broken as it was published: the reader says so, fetching again would not help
        return all((folder / shard).is_file() for shard in shards)
    single = [path for path in folder.glob("*.safetensors") if "-of-" not in path.name]  # a shard is not the whole
    return (folder / PYTORCH).is_file() or bool(single)
