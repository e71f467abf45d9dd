"""Reads the rotary positions that Meta's files of DINOv3 and EUPE contain: the period of every frequency."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.families.facts import Facts

PERIODS = "rope_embed.periods"
DIGITS = 7  # of float32
MOST = 50.0  # largest absolute logarithm of a temperature
CENTRED_EPS = 1e-5
"""Epsilon of the norms in Meta's configurations of DINOv3, and in timm's of EUPE and LingBot-Vision."""


def with_stored_rotation(keys: Iterable[str], read: Callable[[str], np.ndarray], facts: Facts) -> Facts:
    """Adds the rotary positions in a state dict of Meta's DINOv3 to the facts, with a note.

    The number of periods also determines the dimension of a head, which is four times this number, and with the width,
    the number of heads.

    Args:
      keys: names of the parameters.
      read: function from a name to its array.
      facts: facts about the model. Rotary positions in them take precedence.

    Raises:
      QkjaxError: the periods are not those of DINOv3, or the class token has a last norm of its own.
    """
    keys = list(keys)
    key = next((key for key in keys if key.endswith(PERIODS)), None)
    if key is None:
        return facts
    periods = np.asarray(read(key), np.float64)
    if periods.ndim != 1 or not periods.size:
        raise QkjaxError(f"parameter {key!r} has shape {periods.shape}, expected one period for each frequency")
    temperature = _temperature(periods)
    if "rotary" not in facts.settings and temperature is None:
        raise QkjaxError(
            f"parameter {key!r} has values from {periods.min():.4g} to {periods.max():.4g}, expected the powers "
            "temperature^(k / n), k = 0 to n - 1: pass rotary=qkjax.Rotary(...)"
        )
    if norm := next((k for k in keys if k.removesuffix(".weight").rpartition(".")[2] == "cls_norm"), None):
        raise QkjaxError(
            f"parameter {norm!r} is a last norm for the class token and registers alone, which qkjax's model lacks: "
            "remove it from the file to apply 'norm' to all tokens; attention stays the same, only the output changes"
        )
    stored = None if temperature is None else Rotary(temperature, "centred", pairs="half")
    stated = _heads(keys, read, 4 * len(periods)) | {"rotary": stored}
    facts = replace(facts, head_dim=4 * len(periods), settings={**stated, **facts.settings})
    given = facts.settings["rotary"]
    if stored is not None and given == stored:
        rounded = ", which are rounded to bfloat16 in the file; qkjax uses them unrounded" * _is_rounded(periods)
        return facts.with_notes(
            f"the periods in {key!r} state rotary positions of DINOv3 with temperature={temperature:g}{rounded}; "
            "assumed that rows and columns are divided by their own numbers of patches"
        )
    content = f"state temperature={temperature:g}" if temperature else "are not those of DINOv3"
    return facts.with_notes(f"rotary={given} is used, although the periods in {key!r} {content}")


def _heads(keys: list[str], read: Callable[[str], np.ndarray], head_dim: int) -> dict[str, int]:
    """The number of heads, whose dimensions add up to the width in DINOv3; empty if this number is not whole."""
    token = next((key for key in keys if key.endswith("cls_token")), None)
    width = 0 if token is None or not (shape := np.shape(read(token))) else shape[-1]
    return {"heads": width // head_dim} if width and width % head_dim == 0 else {}


def _temperature(periods: np.ndarray) -> float | None:
    """The temperature with the fewest digits whose powers equal the periods to the precision of the file."""
    if (periods <= 0).any():
        return None
    exponents = np.arange(len(periods)) / len(periods)
    logarithm = (exponents * np.log(periods)).sum() / max((exponents**2).sum(), 1e-12)
    fitted = np.exp(min(max(logarithm, -MOST), MOST))
    tolerance = 2.0**-8 if _is_rounded(periods) else 1e-5
    for digits in range(1, DIGITS + 1):
        temperature = float(f"{fitted:.{digits - 1}e}")
        if np.abs(temperature**exponents / periods - 1).max() <= tolerance:
            return temperature
    return None


def _is_rounded(periods: np.ndarray) -> bool:
    """Whether all periods are numbers of bfloat16, while their powers need more digits."""
    bits = periods.astype(np.float32).view(np.uint32)
    return len(periods) > 1 and bool((bits & 0xFFFF == 0).all())
