"""The frame of the interaction M: which parts of the LayerNorm and of the logit it includes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """The frame of M; `decompose` has the formulas.

    Attributes:
      fold_scale: M includes the LayerNorm scale, so that it acts on normalised tokens.
      center: M excludes the mean direction, which LayerNorm removes from tokens.
      normalize: M is divided by sqrt(head_dim).
    """

    fold_scale: bool = False
    center: bool = False
    normalize: bool = False

    def __str__(self) -> str:
        return ", ".join(name for name, value in vars(self).items() if value) or "plain"


PLAIN = Frame()
"""M acts on the output of the LayerNorm, as in the paper."""
