"""Stores finished ablations in a folder, with one file per ablation."""

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import jax
import numpy as np

from qkjax.analyses.edit import ResolvedEdit
from qkjax.passes.partial_file import arrays_in, checksum
from qkjax.runtime import hosts
from qkjax.runtime.files import atomic_path, discard, remove, temporaries
from qkjax.runtime.folders import check_folder

Arrays = dict[str, np.ndarray]
CHECKSUM = "checksum"
"""Name of the array with the checksum of the others and of the name of the file."""


class Store:
    """A store of finished ablations. A hash of all settings and the edit identifies each ablation.

    Equivalent edits, such as controls with equal edited shares, have the same hash. Only the first host reads and
    writes files; it sends their content to all other hosts.

    Attributes:
      folder: the folder of the files; None if nothing is stored.
      settings: the settings that all ablations share.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, str], *, fresh: bool = False):
        """Opens a store in a folder, and empties it if `fresh`. If `folder` is None, the store keeps nothing.

        Raises:
          QkjaxError: the path is not a folder and cannot become one.
        """
        if folder and jax.process_index() == 0:
            check_folder(folder)
        self.folder, self.settings = folder, dict(settings)
        if fresh and folder and jax.process_index() == 0:
            discard(folder.glob("*.npz"))

    def key(self, edit: ResolvedEdit | None) -> str:
        """The hash that identifies the ablation with this edit, or the original model if `edit` is None."""
        digest = blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=12)
        if edit:
            digest.update(f"{edit.kind} {edit.key_bias}".encode())
            for array in (np.asarray(edit.weights, np.float32), edit.heads):
                digest.update(np.ascontiguousarray(array).view(np.uint8))
        return digest.hexdigest()

    def read(self, edit: ResolvedEdit | None) -> Arrays | None:
        """Reads a finished ablation; returns None if the file is missing or damaged.

        Temporary files of processes that were killed are removed, and so is the progress of a finished ablation.
        """
        arrays = None
        if self.folder and jax.process_index() == 0:
            path = self.folder / f"{self.key(edit)}.npz"
            discard(temporaries([path]))
            arrays = _read(path)
        if jax.process_count() > 1:
            arrays = hosts.gather_arrays(arrays or {})[0] or None
        if arrays is not None and (path := self.partial(edit)):
            remove(path)
        return arrays

    def write(self, edit: ResolvedEdit | None, arrays: Arrays) -> None:
        """Writes a finished ablation, and removes the ablation's progress file.

        Raises:
          QkjaxError: the file cannot be written.
        """
        if self.folder is None:
            return
        if jax.process_index() == 0:
            path = self.folder / f"{self.key(edit)}.npz"
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays, **{CHECKSUM: np.array(_checksum(path, arrays))})
        if jax.process_count() > 1:
            hosts.gather_json(None)  # waits, so that no host removes its progress file before the result exists
        if path := self.partial(edit):
            remove(path)

    def partial(self, edit: ResolvedEdit | None) -> Path | None:
        """Path of the file in which this host saves the progress of one ablation."""
        return hosts.process_path(self.folder / f"{self.key(edit)}.partial.npz") if self.folder else None


def _read(path: Path) -> Arrays | None:
    """The arrays in the file of an ablation; None if the file is missing, damaged, or that of another ablation."""
    if not path.is_file():  # opening a pipe would block
        return None
    with suppress(Exception), arrays_in(path) as file:
        stored = {name: file[name] for name in file}
        return stored if int(stored.pop(CHECKSUM)) == _checksum(path, stored) else None
    return None


def _checksum(path: Path, arrays: Arrays) -> int:
    """A checksum that also covers the name of the file, so that files with swapped names are not confused."""
    return checksum({**arrays, "file": np.array(path.name)})


def same_images(arrays: Arrays | None, original: Arrays | None) -> bool:
    """Whether an ablation exists and was computed on the same images as the outputs of the original model.

    The images can differ if files have changed or become readable between the two passes.
    """
    if arrays is None or original is None:
        return False
    return all(name in arrays and np.array_equal(arrays[name], original[name]) for name in ("index", "pixels"))
