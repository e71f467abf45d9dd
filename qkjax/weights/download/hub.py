"""Downloads config.json and weights from repositories of the Hugging Face hub."""

import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from qkjax.errors import QkjaxError
from qkjax.weights.catalogue.hub_cache import CONFIGS, snapshot, unverified
from qkjax.weights.download.address import hub_address
from qkjax.weights.download.partial_file import WrongDigestError, digests, verify
from qkjax.weights.download.record import read_record, record_path, write_record
from qkjax.weights.formats.file_names import FILES, PICKLED

SMALL = [*CONFIGS, "preprocessor_config.json", "processor_config.json"]
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # problems of the disk, not the network


def fetch_repository(cache: Path, repo: str, revisions: tuple[str, ...]) -> Path:
    """Downloads the configuration and the weights. Prefers safetensors files of any revision to PyTorch files.

    The snapshot counts as complete only if every file has the hash that the hub states.

    Args:
      cache: folder of the cache of huggingface_hub.
      repo: name of the repository.
      revisions: the revisions to look at, in this order.

    Raises:
      QkjaxError: huggingface_hub is not installed; there is no connection, or HF_HUB_OFFLINE is set; the repository
        does not exist, is gated, or contains no weights; a file was altered; or the folder cannot be written.
    """
    hub = _library()
    try:
        listed = {}
        for revision in filter(None, revisions):
            listed[revision] = _listed(hub, repo, revision)
            if any(name.endswith(".safetensors") for name in _weights(listed[revision])):
                break
        chosen = next((r for r in reversed(listed) if _weights(listed[r])), None)
        if chosen is None:
            raise QkjaxError(f"{repo} on the hub contains none of {', '.join(FILES)}; choose another repository")
        files, weights = listed[chosen], _weights(listed[chosen])
        # The small files are downloaded first: once the weights exist and are verified, the snapshot counts as
        # complete.
        small = Path(hub.snapshot_download(repo, revision=chosen, cache_dir=cache, allow_patterns=SMALL))
        _compare(small, files, repo)
        small.mkdir(parents=True, exist_ok=True)
        unverified(small).touch()
        hub.snapshot_download(repo, revision=small.name, cache_dir=cache, allow_patterns=weights)
        _verify(small, files, repo)
        write_record(small, f"{hub_address()}/{repo}/tree/{revisions[0]}")
        unverified(small).unlink()
    except QkjaxError:
        raise
    # The HTTP client raises different exceptions in different versions of huggingface_hub.
    except Exception as error:
        raise QkjaxError(f"cannot fetch {repo} from the hub: {_reason(error, repo)}") from error
    path = snapshot(cache, repo, (chosen,))
    if not path.exists():
        raise QkjaxError(f"{repo} on the hub has no {' or '.join(CONFIGS)}, or the download is incomplete; try again")
    return path


def _listed(hub: ModuleType, repo: str, revision: str) -> dict[str, Any]:
    """A dict from the names of a revision's files to the facts that the hub states about them."""
    files = hub.HfApi().list_repo_tree(repo, revision=revision)
    return {file.path: file for file in files if hasattr(file, "blob_id")}


def _compare(folder: Path, files: Mapping[str, Any], repo: str) -> None:
    """Checks that an earlier snapshot still agrees with the hub, because a commit must never change.

    Raises:
      QkjaxError: a file differs from the hub's file. The function does not remove the file.
    """
    recorded = read_record(folder)
    for name, facts in recorded.get("files", {}).items():
        stated, known = _stated_digest(files.get(name)), dict(facts)
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                known |= digests(file, stated)
        if any(known.get(kind, digest) != digest for kind, digest in stated.items()):
            raise QkjaxError(
                f"{name} in {hub_address()}/{repo} differs from the file that {recorded['url']} had on "
                f"{recorded['date']}, at the same commit: one of the two was altered; to accept the new file, delete "
                f"{folder} and {record_path(folder).name}"
            )


def _verify(folder: Path, files: Mapping[str, Any], repo: str) -> None:
    """Checks that the files of a snapshot have the hashes that the hub states.

    Raises:
      QkjaxError: the hash of a file differs from the hub's hash. The function removes the file.
    """
    for path in sorted(folder.iterdir()):
        try:
            with open(path, "rb") as file:
                verify(file, f"{repo}/{path.name}", _stated_digest(files.get(path.name), path.resolve().name))
        except WrongDigestError:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise


def _stated_digest(stated: Any, blob: str = "") -> dict[str, str]:
    """The expected hashes of a file: `stated` is its entry in the hub's list, and `blob` its name in the cache.

    The hub lists the SHA-256 of large files, and git's identifier of small files. huggingface_hub names a file in its
    cache after the server's ETag, which is a SHA-256 for large files. `stated` is None if the hub does not list the
    file.
    """
    expected = {"sha256": blob} if re.fullmatch("[0-9a-f]{64}", blob) else {}
    if stated is not None and stated.lfs:
        return {"sha256": stated.lfs.sha256}
    if stated is not None and re.fullmatch("[0-9a-f]{40}", stated.blob_id or ""):
        return expected | {"git": stated.blob_id}
    return expected


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise QkjaxError(
            "models from the Hugging Face hub need the package huggingface_hub, which is not installed: pip install "
            "'qkjax[hf]'"
        ) from error
    return huggingface_hub


def _weights(files: Iterable[str]) -> list[str]:
    """The names of a repository's files with weights, or [] if qkjax can read none of them.

    The function prefers a single file to shards, and safetensors files to PyTorch files.
    """
    top = [name for name in files if "/" not in name]
    if FILES[0] in top:
        return [FILES[0]]
    if safe := sorted(name for name in top if name.endswith((".safetensors", ".safetensors.index.json"))):
        return safe
    named = next((name for name in FILES if name in top), None)
    if named and named.endswith(".index.json"):
        return [named, *sorted(name for name in top if name.endswith(PICKLED) and "-of-" in name)]
    return [named] if named else []


def _reason(error: Exception, repo: str) -> str:
    """A short message that states the problem and what to do, because the messages of huggingface_hub are long."""
    advice = {
        "GatedRepoError": f"the repository is gated: accept the licence on {hub_address()}/{repo}, then put a token of "
        "the account that accepted it in HF_TOKEN, or run `hf auth login`",
        "RepositoryNotFoundError": "there is no public repository, file or folder with this name",
        "RevisionNotFoundError": "the revision does not exist",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set and the files are not on disk",
        "LocalEntryNotFoundError": "no connection to the hub, or HF_HUB_OFFLINE is set, and the files are not on disk",
    }
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.strerror}: free some space, or set QKJAX_CHECKPOINTS to another folder"
    for kind in type(error).__mro__:
        if kind.__name__ in advice:
            return advice[kind.__name__]
    if "Invalid credentials" in str(error):
        return "the hub does not know the token in HF_TOKEN or of `hf auth login`: put a valid token there"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}; check the connection and try again"
