"""Facts about a model that the shapes of its parameters do not determine."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.families.layout import Layout

Grid = tuple[int, int]
ParsedModel = tuple[ViTConfig, dict[str, np.ndarray], tuple[str, ...]]
"""A tuple of the architecture, a flat dict of canonical arrays, and notes on what qkjax assumed or left out."""
ROTARY = "it has rotary position embeddings: a head has no single matrix Wq Wk^T"
USUAL = Layout()
FIELDS = frozenset(ViTConfig.__dataclass_fields__)
APART = {"grid", "head_dim", "patch_size", "pool_heads"}
"""Fields of `ViTConfig` that `Facts` stores outside of `settings`."""


@dataclass(frozen=True)
class Facts:
    """Facts about a model. The source of the facts is config.json, the architecture's name, a live module, or the
    caller.

    Attributes:
      settings: fields of `ViTConfig` that shapes do not determine, such as heads and activation.
      head_dim: dimension of a head.
      grids: possible grids of the position embedding; the most reliable grid is first.
      grid_is_given: whether the caller passes the grid, which must then match the position embedding.
      prefix_positions: whether special tokens have rows in the position embedding; None if unknown.
      pool_heads: number of heads of attention pooling; None if it has as many heads as each layer.
      patch_size: height and width of a patch, for a patch embedding that is stored as a dense layer.
      foreign_head: the reason why the classifier is not a dense layer on the pooled token; "" if it is such a layer.
      complete: whether the source describes the whole model, so that qkjax makes no further assumptions.
      layout: how models of this type store their parameters.
      stated_sizes: a dict from keys of config.json to sizes. The parameters also determine these sizes, which must
        agree.
      notes: sentences that state what qkjax overruled or left out.
    """

    settings: Mapping = field(default_factory=dict)
    head_dim: int | None = None
    grids: tuple[Grid, ...] = ()
    grid_is_given: bool = False
    prefix_positions: bool | None = None
    pool_heads: int | None = None
    patch_size: tuple[int, int] | None = None
    foreign_head: str = ""
    complete: bool = False
    layout: Layout = USUAL
    stated_sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def with_settings(self, settings: Mapping) -> "Facts":
        """Adds the caller's settings, which take precedence; a note states each value that a setting replaces."""
        differing = [
            f"{name}={value!r} is used as given; the files state {self.settings[name]!r}"
            for name, value in settings.items()
            if name != "grid" and name in self.settings and self.settings[name] != value
        ]
        grids = (settings["grid"],) if "grid" in settings else self.grids
        head_dim = None if "heads" in settings else self.head_dim
        return replace(
            self,
            settings={**self.settings, **{name: value for name, value in settings.items() if name != "grid"}},
            grids=grids,
            grid_is_given="grid" in settings or self.grid_is_given,
            head_dim=head_dim,
            notes=(*self.notes, *differing),
        )

    def with_notes(self, *notes: str) -> "Facts":
        """Adds notes to the facts."""
        return replace(self, notes=(*self.notes, *notes))


def height_and_width(value: Any) -> tuple[int, int] | None:
    """Converts one number, or a list of two numbers, to height and width. Returns None for anything else."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    return pair if len(pair) == 2 and all(type(n) is int and n > 0 for n in pair) else None


def from_module_facts(facts: Mapping) -> Facts:
    """Converts the result of `timm_module.facts_of`, or a line of timm_architectures.json, to facts."""
    settings = {name: value for name, value in facts.items() if name in FIELDS - APART}
    if rotary := settings.get("rotary"):
        settings["rotary"] = Rotary.from_dict(rotary)
    return Facts(
        settings,
        head_dim=facts.get("head_dim"),
        grids=(tuple(facts["grid"]),) if facts.get("grid") else (),
        pool_heads=facts.get("pool_heads"),
        prefix_positions=facts.get("prefix_positions"),
        patch_size=tuple(facts["patch_size"]) if facts.get("patch_size") else None,
        complete=True,
    )
