"""The commands by which more is learned of a mode, as a page shows them."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from qkjax.analyses.top_images.scan import ScanOptions
from qkjax.report.subject import Gathered


def commands(found: Gathered) -> dict[str, str]:
    """`modes`, which reads the same scan, and `ablate`, for the shell, in the folder that the report was made in: each
    up to what it selects."""
    subject, options, usual = found.subject, found.options, ScanOptions()
    seen = {"images": found.images, "resolution": options.resolution, **json.loads(subject.origin["loaded_with"])}
    every = {"dtype": options.dtype, "score": options.scores, "top": options.top, "stream": options.stream}
    default = {"dtype": usual.dtype, "score": usual.scores, "top": usual.top, "stream": usual.stream}
    other = {name: value for name, value in every.items() if value != default[name]}
    home = Path("results") / subject.checkpoint.name
    out = {} if subject.scanned == home / "modes" else {"out": subject.scanned}
    beside = {} if subject.folder == home else {"out": subject.folder / "ablations"}
    precision = {name: value for name, value in other.items() if name == "dtype"}
    model = _from_here(subject.origin["checkpoint"])
    return {
        "modes": _line("modes", model, seen | other | out),
        "ablate": _line("ablate", model, seen | precision | beside),
    }


def _from_here(checkpoint: str) -> str:
    """A path within the current folder as it is called there; all else as it stands."""
    inside = os.path.isabs(checkpoint) and Path(checkpoint).is_relative_to(Path.cwd())
    return os.path.relpath(checkpoint) if inside else checkpoint


def _line(command: str, model: str, flags: Mapping) -> str:
    words = ["qkjax", command, model]
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join([*words, "--select"])
