"""The facts in a config.json of transformers or timm."""

from collections.abc import Mapping

from qkjax.weights.families import huggingface, timm
from qkjax.weights.families.facts import Facts


def facts_of_config(config: Mapping) -> Facts:
    """The facts that a config.json states.

    Raises:
      QkjaxError: the architecture's heads have no single matrix Wq Wk^T, or a key is unknown.
    """
    return timm.facts_of(config) if "architecture" in config else huggingface.facts_of(config)
