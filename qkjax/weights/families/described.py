"""The facts in a config.json of transformers or timm."""

from collections.abc import Mapping

from qkjax.errors import QkjaxError
from qkjax.weights.families import huggingface, timm
from qkjax.weights.families.facts import Facts


def facts_of_config(config: Mapping) -> Facts:
    """The facts that a config.json states.

    Raises:
      QkjaxError: the architecture's heads have no single matrix Wq Wk^T, a key is unknown, or a value has the wrong
        type.
    """
    library = timm if "architecture" in config else huggingface
    try:
        return library.facts_of(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise QkjaxError(f"config.json has a value of the wrong type ({error})") from error
