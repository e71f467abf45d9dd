"""The commands that analyse a mode further, as a page shows them."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from qkjax.analyses.top_images.pages import ScanOptions, earlier_folder
from qkjax.report.subject import ModelData


def commands(found: ModelData) -> dict[str, str]:
    """Shell commands for the folder in which the report was written: `top-images`, which reads the same scan, and
    `ablate`; each lacks only the selection."""
    subject, scan, usual = found.subject, found.scan, ScanOptions()
    seen = {"images": found.images, "resolution": scan.options.resolution, **json.loads(subject.origin["loaded_with"])}
    every = {"dtype": scan.options.dtype, "score": scan.scores, "top": scan.top, "stream": scan.stream}
    default = {"dtype": usual.options.dtype, "score": usual.scores, "top": usual.top, "stream": usual.stream}
    other = {name: value for name, value in every.items() if value != default[name]}
    home = Path("results") / subject.checkpoint.name
    out = {} if subject.scanned == earlier_folder(home) else {"out": subject.scanned}
    beside = {} if subject.folder == home else {"out": subject.folder / "ablations"}
    precision = {name: value for name, value in other.items() if name == "dtype"}
    model = _from_here(subject.origin["checkpoint"])
    return {
        "modes": _line("top-images", model, seen | other | out),
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
