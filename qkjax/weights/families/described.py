"""The facts of a config.json, of transformers or of timm."""

from collections.abc import Mapping

from qkjax.weights.families import huggingface, timm
from qkjax.weights.families.facts import Facts


def facts_of_config(config: Mapping) -> Facts:
    """The facts that a config.json states.

    Raises:
      QkjaxError: an architecture whose heads have no single matrix Wq Wk^T, or a key that qkjax does not know.
    """
    return timm.facts_of(config) if "architecture" in config else huggingface.facts_of(config)
