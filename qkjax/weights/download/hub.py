"""Downloads config.json and weights of repositories of the Hugging Face hub."""

from pathlib import Path
from types import ModuleType

from qkjax.errors import QkjaxError
from qkjax.weights.catalogue.hub_cache import CONFIGS, snapshot
from qkjax.weights.formats.state_dict import FILES, PICKLED

SMALL = [*CONFIGS, "preprocessor_config.json", "processor_config.json"]


def fetch_repository(cache: Path, repo: str, revisions: tuple[str, ...]) -> Path:
    """Downloads config and weights. Safetensors of any revision are preferred to a PyTorch file.

    Raises:
      QkjaxError: huggingface_hub is not installed; no connection, or HF_HUB_OFFLINE is set; the repository does
        not exist, is gated, or holds no weights.
    """
    hub = _library()
    try:
        listed = {}
        for revision in filter(None, revisions):
            listed[revision] = hub.HfApi().list_repo_files(repo, revision=revision)
            if any(name.endswith(".safetensors") for name in _weights(listed[revision])):
                break
        chosen = next((r for r in reversed(listed) if _weights(listed[r])), None)
        if chosen is None:
            raise QkjaxError(f"{repo} on the hub holds none of {', '.join(FILES)}; choose another repository")
        # The small files first: once the weights exist, the snapshot counts as complete.
        small = Path(hub.snapshot_download(repo, revision=chosen, cache_dir=cache, allow_patterns=SMALL))
        hub.snapshot_download(repo, revision=small.name, cache_dir=cache, allow_patterns=_weights(listed[chosen]))
    except QkjaxError:
        raise
    # Versions of huggingface_hub differ in the exceptions of their HTTP client.
    except Exception as error:
        raise QkjaxError(f"cannot fetch {repo} from the hub: {_reason(error)}") from error
    path = snapshot(cache, repo, (chosen,))
    if not path.exists():
        raise QkjaxError(f"{repo} on the hub has no {' or '.join(CONFIGS)}, or the download is incomplete; try again")
    return path


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise QkjaxError(
            "models of the Hugging Face hub need huggingface_hub, which is not installed: pip install 'qkjax[hf]'"
        ) from error
    return huggingface_hub


def _weights(files: list[str]) -> list[str]:
    """The files with the weights of a repository; [] if qkjax can read none of them.

    One file is preferred to shards, and safetensors to PyTorch's files.
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


def _reason(error: Exception) -> str:
    """A short message with the problem and what to do; those of huggingface_hub are long."""
    advice = {
        "GatedRepoError": "it is gated: accept its licence on its page, then log in with `hf auth login`",
        "RepositoryNotFoundError": "there is no public repository, file or folder with this name",
        "RevisionNotFoundError": "the revision does not exist",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set and the files are not on disk",
        "LocalEntryNotFoundError": "no connection to the hub, or HF_HUB_OFFLINE is set, and the files are not on disk",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in advice:
            return advice[kind.__name__]
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}; check the connection and try again"
