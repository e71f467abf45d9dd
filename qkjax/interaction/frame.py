"""The frame in which the interaction is taken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """The frame in which M is taken; formulas in `decompose`.

    Attributes:
      fold_scale: the LayerNorm scale is folded: M acts on normalised tokens.
      center: the mean direction, which LayerNorm removes, is taken out.
      normalize: M is divided by sqrt(head_dim).
    """

    fold_scale: bool = False
    center: bool = False
    normalize: bool = False

    def __str__(self) -> str:
        return ", ".join(name for name, value in vars(self).items() if value) or "plain"


PLAIN = Frame()
"""M acts on the output of the LayerNorm, as in the paper."""
