"""Stores hashes of the files of checkpoints, so that damaged checkpoints are found before orbax reads them.

Each checkpoint contains the SHA-256 hashes of its own files. The hashes are written before orbax gives the checkpoint
its final name. A checkpoint without hashes is therefore unfinished.
"""

import hashlib
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import jax

from qkjax.errors import QkjaxError
from qkjax.runtime.files import discard

DIGESTS, METADATA = "digests.json", "_CHECKPOINT_METADATA"
COMMITTED = "commit_timestamp_nsecs"
"""Field of orbax's metadata that orbax sets after the hashes have been written."""
UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
log = logging.getLogger(__name__)


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in a folder, including damaged checkpoints, in ascending order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())


def unfinished(folder: Path) -> list[Path]:
    """The checkpoints with temporary names, which are being written or were left unfinished by a killed process."""
    return [path for path in folder.glob("*") if UNFINISHED.fullmatch(path.name)]


def write_digests(folder: Path) -> None:
    """Writes the hashes of a checkpoint before it gets its final name. Orbax calls this function in the background."""
    if jax.process_index() > 0:
        return
    for path in unfinished(folder):
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        with open(path / DIGESTS, "w") as file:
            json.dump({name: _digest(path / name) for name in names}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def _digest(path: Path) -> str | None:
    """The SHA-256 of a file, without the time in orbax's metadata; None if the path is no longer a file."""
    if not path.is_file():
        return None
    if path.name == METADATA:
        with suppress(ValueError, AttributeError, TypeError):
            fields = {k: v for k, v in json.loads(path.read_bytes()).items() if k != COMMITTED}
            return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_damaged(folder: Path) -> None:
    """Removes damaged checkpoints.

    Raises:
      QkjaxError: all checkpoints are damaged, or a file cannot be read.
    """
    present = steps(folder)
    listed = [step for step in present if (folder / str(step) / DIGESTS).exists()]
    try:
        found = {step: _damage(folder / str(step), step > min(listed, default=step)) for step in present}
        damaged = {step: damage for step, damage in found.items() if damage}
        whole = [step for step in present if step not in damaged]
        if damaged and not whole:
            raise QkjaxError(
                f"{folder / str(present[-1])} is damaged ({damaged[present[-1]]}), and there is no other checkpoint: "
                f"remove {folder} to train from the first step"
            )
        for step, damage in damaged.items():
            path = folder / str(step)
            log.warning("%s is damaged (%s) and was removed; the run resumes from step %d", path, damage, whole[-1])
            discard([path])
    except OSError as error:
        raise QkjaxError(f"cannot read or remove the checkpoints in {folder}: {error.strerror or error}") from error


def _damage(path: Path, expects_digests: bool) -> str:
    """Describes the first difference between a checkpoint's files and its hashes; "" if there is none."""
    file = path / DIGESTS
    if not file.is_file():
        return f"{DIGESTS} is missing" if expects_digests or not path.is_dir() else ""
    try:
        digests = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        digests = {}
    changed = [name for name, digest in digests.items() if _digest(path / name) != digest]
    return f"{changed[0]} has changed" if changed else "" if digests else f"{DIGESTS} is not valid"
