"""The persistent compilation cache of JAX: programs that one process compiled are read from disk by later processes."""

import os
import platform
import sys
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from platformdirs import user_cache_path

from qkjax.errors import QkjaxError

VARIABLE = "QKJAX_COMPILATION_CACHE"
MAX_BYTES = 256 * 2**20
"""Largest size of the cache. JAX removes the programs that have not been used for the longest time."""
MIN_SECONDS = 0.05
"""Programs that compile in less time are not saved: reading them would save nothing."""
OWN_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


@cache
def use_compilation_cache() -> None:
    """Turns on the persistent compilation cache, unless the user has configured or turned off JAX's cache.

    The environment variable `QKJAX_COMPILATION_CACHE` is a folder, or "off"; by default, the folder is in the user's
    cache folder. If this folder cannot be used, programs are compiled in every process. JAX is not imported: if it is
    not imported yet, it reads these settings from the environment, as do processes that this process starts.

    Raises:
      QkjaxError: the folder in `QKJAX_COMPILATION_CACHE` cannot be used.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() == "off" or _is_configured():
        return
    folder = (Path(chosen).expanduser() if chosen else user_cache_path("qkjax") / "programs") / _processor()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_incomplete(folder)
    except (OSError, NotImplementedError) as error:
        if chosen:
            raise QkjaxError(
                f"{VARIABLE}={chosen}: cannot use this folder ({error}); pass another folder, or off"
            ) from error
        return
    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": MIN_SECONDS,
    }.items():
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
        else:
            os.environ[name.upper()] = str(value)


def _is_configured() -> bool:
    """Whether the user has configured or turned off JAX's own cache."""
    config = getattr(sys.modules.get("jax"), "config", None)
    in_process = config and (config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache)
    return bool(in_process) or any(name in os.environ for name in OWN_SETTINGS)


def _processor() -> str:
    """A name for the processor: a program for one processor may contain instructions that another one does not have."""
    features = ""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        lines = file.read(2**14).splitlines()  # the first core suffices
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{blake2b(features.encode(), digest_size=4).hexdigest()}"


def _remove_incomplete(folder: Path) -> None:
    """Removes the files that a process left behind when it was killed while writing.

    JAX holds a lock while it writes a program (NAME-cache), and then the time of its last use (NAME-atime). A program
    without a time is therefore incomplete if the lock is free. JAX would not replace the incomplete program.

    Raises:
      OSError, NotImplementedError: the folder cannot be written or locked.
    """
    from filelock import FileLock, Timeout

    with suppress(Timeout), FileLock(folder / ".lockfile", timeout=0):
        names = {path.name for path in folder.iterdir()}
        for name in names:
            stem, _, kind = name.rpartition("-")
            other = {"cache": "atime", "atime": "cache"}.get(kind)
            if other and f"{stem}-{other}" not in names:
                (folder / name).unlink(missing_ok=True)
