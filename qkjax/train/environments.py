"""Records on which software and hardware a run was trained, since the last bits of its numbers depend on them.

Small differences grow in training: near a transition, two runs that differ in their last bits can end at very different
accuracies.
"""

import json
import logging
from pathlib import Path

from qkjax.runtime.environment import environment
from qkjax.runtime.files import atomic_path, read_bytes
from qkjax.runtime.parsed import from_json

log = logging.getLogger(__name__)


def record_environment(path: Path, step: int) -> None:
    """Adds the environment of this process to a file, and warns if it differs from that of the earlier steps.

    Args:
      path: a JSON file with a list of environments, each with its first step, `from_step`.
      step: the first step that this process will train from; 0 starts a new list.

    Raises:
      QkjaxError: the file cannot be written.
    """
    own, earlier = environment(), _read(path) if step else []
    last = {name: value for name, value in (earlier[-1] if earlier else {}).items() if name != "from_step"}
    if last == own:
        return
    if earlier:
        changes = [f"{name} {last.get(name, 'none')} -> {own.get(name, 'none')}" for name in {**last, **own}
                   if last.get(name) != own.get(name)]  # fmt: skip
        log.warning(
            "%s: the environment has changed since the earlier steps (%s), so the results can differ from those of an "
            "uninterrupted run",
            path.parent,
            ", ".join(changes),
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps([*earlier, {"from_step": step, **own}], indent=1) + "\n")


def _read(path: Path) -> list[dict]:
    """The environments in a file; empty if there is none, as for a run of an earlier version, or if it is damaged."""
    try:
        environments = from_json(read_bytes(path) or b"[]")
    except ValueError:
        environments = None
    if not (isinstance(environments, list) and all(isinstance(item, dict) for item in environments)):
        log.warning("%s is damaged and is written again", path)
        return []
    return environments
