"""Reads and writes JSON files in a run's folder: the configuration, the metrics, and facts about the task.

All values are checked when they are read.
"""

import json
from collections.abc import Callable
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.runtime.files import atomic_path, read_bytes
from qkjax.runtime.parsed import from_json
from qkjax.train.config import TrainConfig, from_dict

Check = tuple[str, Callable]  # a description of the expected value, and a function that checks a value


def read_config(path: Path) -> TrainConfig | None:
    """Reads the configuration of a run; returns None if there is no file.

    Raises:
      QkjaxError: the file is not a valid configuration.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        return from_dict(dict(from_json(data)))
    except (ValueError, TypeError, QkjaxError) as error:
        raise QkjaxError(
            f"{path} is not a valid configuration of a run ({_short(error)}): restore this file, or remove "
            f"{path.parent}"
        ) from error


def write_config(path: Path, config: TrainConfig) -> None:
    """Atomically writes the configuration of a run."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n")


def read_metrics(path: Path, config: TrainConfig) -> list[dict]:
    """Reads the metrics of a run: one dict per evaluation, starting with the first; empty if there is no file.

    If the last line is cut off, it is dropped, because it can be computed again.

    Raises:
      QkjaxError: a line before the last is not valid, or a line is missing.
    """
    lines = []
    texts = (read_bytes(path) or b"").splitlines()
    for number, (text, step) in enumerate(zip(texts, evaluations(config, len(texts)), strict=True), start=1):
        try:
            line = from_json(text)
        except ValueError as error:
            if number == len(texts):
                break
            raise _invalid(path, number, _short(error)) from error
        if problem := _problem(line, {"step": _is_step(step)} | _line_checks(config)):
            raise _invalid(path, number, problem)
        lines.append(line)
    return lines


def _invalid(path: Path, number: int, problem: str) -> QkjaxError:
    return QkjaxError(
        f"{path} is not a valid file of metrics (line {number}: {problem}): restore this file, or remove {path.parent}"
    )


def write_metrics(path: Path, lines: list[dict]) -> None:
    """Atomically writes the metrics of a run, one line per evaluation."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluations(config: TrainConfig, count: int | None = None) -> list[int | None]:
    """The steps of all evaluations of a run, or of the first `count`, where a missing evaluation is None."""
    steps = [*range(config.every, config.steps, config.every), config.steps]
    return steps if count is None else [*steps[:count], *[None] * (count - len(steps))]


def read_facts(path: Path) -> dict:
    """Reads facts about a run that are not in its configuration, such as the number of held-out images.

    The result is empty for a run of version 0.1.0.

    Raises:
      QkjaxError: the file is not valid.
    """
    data = read_bytes(path)
    if data is None:
        return {}
    try:
        facts = from_json(data)
        problem = _problem(facts, _FACTS)
    except ValueError as error:
        problem = _short(error)
    if problem:
        raise QkjaxError(f"{path} is not a valid description of a task ({problem}): remove this file")
    return facts


def write_facts(path: Path, facts: dict) -> None:
    """Atomically writes the facts that `read_facts` reads."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(facts) + "\n")


def _short(error: Exception) -> str:
    return str(error)[:200]


def _is_count(value) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST


def _is_between(low: float, high: float) -> Callable:
    """Returns a function that checks whether a value is a number in a range. NaN and infinity are out of range."""
    return lambda value: type(value) in (int, float) and low <= value <= high


ROTARY_MEASURES = ("same_place_cosine", "place_share")
"""Measures that a line of metrics has only if the model has rotary positions; see `train.positions`."""
_LARGEST = 1e300
_FINITE = "a finite number", _is_between(-_LARGEST, _LARGEST)
_SHARE = "from 0 to 1", _is_between(0.0, 1.0)
_COUNT = "a whole number of at least 1", _is_count
_FACTS: dict[str, Check] = {
    **dict.fromkeys(("classes", "held_out", "parameters"), _COUNT),
    "largest_class": ("from 0 to 1, or null", lambda value: value is None or _SHARE[1](value)),
}


def _is_step(step: int | None) -> Check:
    """The check of an evaluation's step. If `step` is None, the run has no such evaluation."""
    return "no such line" if step is None else str(step), lambda value: type(value) is int and value == step


def _line_checks(config: TrainConfig) -> dict[str, Check]:
    is_cosine = _is_between(-1.001, 1.001)

    def is_layers(value) -> bool:
        return isinstance(value, list) and len(value) == config.depth and all(c is None or is_cosine(c) for c in value)

    rotary = ROTARY_MEASURES if config.positions.startswith("rope") else ()
    return {
        "loss": _FINITE,
        "accuracy": _SHARE,
        "validation_loss": _FINITE,
        **dict.fromkeys(("weighted_cosine", *rotary), (f"{config.depth} numbers from -1 to 1, or null", is_layers)),
    }


def _problem(values, checks: dict[str, Check]) -> str:
    """Describes the problem with a JSON object; "" if there is none."""
    if not isinstance(values, dict):
        return "expected a JSON object"
    for name, (expected, is_valid) in checks.items():
        if name not in values:
            return f"{name} is missing"
        if not is_valid(values[name]):
            return f"{name}={str(values[name])[:50]}: expected {expected}"
    return ""
