"""Builds the shell commands that a page suggests for further analysis of a mode."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from qkjax.analyses.top_images.pages import ScanOptions, earlier_folder
from qkjax.report.subject import ModelData


def commands(data: ModelData) -> dict[str, str]:
    """Returns shell commands for `qkjax top-images` (with the options of the image scan) and `qkjax ablate`.

    The commands end with --select, to which the reader adds a selection of modes. Paths in the commands are relative to
    the working folder in which the report was written.
    """
    subject, scan, defaults = data.subject, data.scan, ScanOptions()
    common = {"images": data.images, "resolution": scan.options.resolution, **json.loads(subject.origin["loaded_with"])}
    options, default = (
        {"dtype": s.options.dtype, "score": s.scores, "top": s.top, "stream": s.stream} for s in (scan, defaults)
    )
    changed = {name: value for name, value in options.items() if value != default[name]}
    home = Path("results") / subject.checkpoint.name
    scan_out = {} if subject.scan_folder == earlier_folder(home) else {"out": subject.scan_folder}
    ablate_out = {} if subject.folder == home else {"out": subject.folder / "ablations"}
    measure = {} if subject.checkpoint.config.rotary is None else {"match": "strength"}
    precision = {name: value for name, value in changed.items() if name == "dtype"}
    model = _relative(subject.origin["checkpoint"])
    return {
        "modes": _line("top-images", model, common | changed | scan_out),
        "ablate": _line("ablate", model, common | precision | measure | ablate_out),
    }


def _relative(checkpoint: str) -> str:
    """Makes a path inside the working folder relative to the working folder; returns any other text unchanged."""
    inside = os.path.isabs(checkpoint) and Path(checkpoint).is_relative_to(Path.cwd())
    return os.path.relpath(checkpoint) if inside else checkpoint


def _line(command: str, model: str, flags: Mapping) -> str:
    words = ["qkjax", command, model]
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join([*words, "--select"])
