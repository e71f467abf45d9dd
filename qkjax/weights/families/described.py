"""Reads facts and preprocessing from the configuration file of a model of transformers, timm or open_clip."""

from collections.abc import Callable, Mapping
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights.families import huggingface, open_clip, timm
from qkjax.weights.families.facts import Facts
from qkjax.weights.formats.json_object import read_json


def facts_beside(weights: Path) -> Facts:
    """The facts in the configuration file next to a file with weights. If there is no such file, no fact is known.

    A repository that has weights for both transformers and open_clip also has both configuration files.

    Raises:
      QkjaxError: see `facts_of_config` and `open_clip.facts_of_config`.
    """
    if config := open_clip_config(weights):
        return _checked(open_clip.facts_of_config, config)
    config = weights.parent / "config.json"
    return facts_of_config(read_json(config)) if config.is_file() else Facts()


def open_clip_config(weights: Path) -> dict | None:
    """The open_clip_config.json that describes a file with weights, or None if no such file describes it."""
    path = weights.parent / open_clip.CONFIG
    own = weights.name.startswith("open_clip") or not (weights.parent / "config.json").is_file()
    return read_json(path) if own and path.is_file() else None


def facts_of_config(config: Mapping) -> Facts:
    """The facts in a config.json.

    Raises:
      QkjaxError: the architecture's heads have no single matrix Wq Wk^T, a key is unknown, or a value has the wrong
        type.
    """
    return _checked(timm.facts_of if "architecture" in config else huggingface.facts_of, config)


def _checked(facts_of: Callable[[Mapping], Facts], config: Mapping) -> Facts:
    try:
        return facts_of(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise QkjaxError(f"the configuration has a value of the wrong type ({error})") from error
