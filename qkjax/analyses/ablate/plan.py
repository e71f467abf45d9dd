"""Reads ablation plans. A plan is a TOML file with one or more grids of edits, such as:

    [[grid]]
    edit = "drop"
    select = ["grouping={dose} layers={layers}", "contextual={dose} layers={layers}"]
    dose = [0.1, 0.2, 0.4, 0.8]
    layers = ["0-3", "8-11"]
    controls = 5

A grid combines every edit with every selection. A placeholder `{name}` in a selection takes every value in the list
`name`. The values of `dose` are the horizontal axis of dose-response curves. `controls` is the number of control
ablations for each ablation. A control edits random modes, and its change is as large as that of the selected modes. The
controls have the random seeds 0, 1, and so on. A grid may also contain `match = "logits"` or `match = "strength"`, the
measure of doses and controls (see `qkjax.interaction.dose`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkjax.analyses.edit import Edit
from qkjax.errors import QkjaxError
from qkjax.interaction.dose import MATCHES, Match
from qkjax.runtime.files import read_text
from qkjax.runtime.parsed import from_toml

FIELDS = {
    "edit": ((str, list), "a string or a list of strings"),
    "select": ((str, list), "a string or a list of strings"),
    "controls": ((int,), "a whole number"),
    "key_bias": ((bool,), "true or false"),
    "match": ((str,), " or ".join(f'"{name}"' for name in MATCHES)),
}
"""Types of the fields of a grid, and the names of these types in error messages."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")
DOSE = "dose"
LARGEST_DOSE = 1e9
MOST_SPECS = 100_000
"""Largest number of ablations of a plan; each takes seconds."""


class AblationSpec(NamedTuple):
    """One ablation of a plan.

    Attributes:
      edit: the edit and its selection of modes.
      condition: the selection without its dose and its layers. All ablations of one dose-response curve have the same
        condition.
      layers: the values of the "layers=" terms in the selection; "" for all layers.
      dose: the dose; NaN if the selection has no dose.
    """

    edit: Edit
    condition: str
    layers: str
    dose: float


Plan = str | Path | Sequence[AblationSpec] | Sequence[Mapping]
"""A plan is given as the path of a TOML file, as a list of ablations, or as a list of grids (dicts)."""


def specs_of(plan: Plan, match: Match = "logits") -> list[AblationSpec]:
    """Returns the ablations of a plan. The plan may be a file, a list of ablations, or a list of grids.

    Args:
      plan: the plan.
      match: the measure of doses and controls, for grids that do not state it.

    Raises:
      QkjaxError: the plan or the measure is invalid.
    """
    if isinstance(plan, str | Path):
        return read_plan(Path(plan), match)
    plan = list(plan)
    return plan if plan and isinstance(plan[0], AblationSpec) else expand(plan, match)


def read_plan(path: Path, match: Match = "logits") -> list[AblationSpec]:
    """Reads the ablations of a plan from a TOML file; see `specs_of`.

    Raises:
      QkjaxError: the file cannot be read, is not valid TOML, or is not a valid plan.
    """
    try:
        content = from_toml(read_text(path))
    except ValueError as error:
        raise QkjaxError(f"{path} is not valid TOML: {error}") from error
    grids = content.get("grid")
    if (
        not grids
        or not isinstance(grids, list)
        or not all(isinstance(grid, dict) for grid in grids)
        or set(content) != {"grid"}
    ):
        raise QkjaxError(f"{path} is not a plan: expected only [[grid]] tables, each with edit and select")
    try:
        return expand(grids, match)
    except QkjaxError as error:
        raise QkjaxError(f"{path}: {error}") from error


def expand(grids: list[Mapping], match: Match = "logits") -> list[AblationSpec]:
    """Returns the ablations of all grids, each ablation only once; see `specs_of`.

    If an edit occurs both with and without a dose, the ablation with the dose is used.

    Raises:
      QkjaxError: a grid is invalid.
    """
    specs = []
    for grid in grids:
        specs += _grid_specs({"match": match, **grid})
        if len(specs) > MOST_SPECS:
            raise QkjaxError(f"the plan has more than {MOST_SPECS} ablations: use fewer values")
    first: dict[Edit, AblationSpec] = {}
    for spec in specs:
        if spec.edit not in first or (np.isnan(first[spec.edit].dose) and not np.isnan(spec.dose)):
            first[spec.edit] = spec
    return list(first.values())


def _grid_specs(grid: Mapping) -> list[AblationSpec]:
    for name, (types, expected) in FIELDS.items():
        if name in grid and (not isinstance(grid[name], types) or isinstance(grid[name], bool) != (types == (bool,))):
            raise QkjaxError(f"{name} is {grid[name]!r}: expected {expected}")
    if grid["match"] not in MATCHES:
        raise QkjaxError(f"match is {grid['match']!r}: expected {FIELDS['match'][1]}")
    if "edit" not in grid:
        raise QkjaxError('a grid has no edit: add an edit to the grid, such as edit = "drop"')
    edits, selections = (_as_list(grid.get(name, "all")) for name in ("edit", "select"))
    values = {name: _as_list(grid[name]) for name in grid if name not in FIELDS}
    used = {name for text in selections for name in PLACEHOLDER.findall(str(text))}
    if missing := used - set(values):
        name = min(missing)
        raise QkjaxError(
            f"a selection has the placeholder {{{name}}}, but its grid has no field {name}: add {name} = [...] with a "
            "list of values"
        )
    if unused := set(values) - used:
        raise QkjaxError(
            f"the field {min(unused)} of a grid is not used: write {{{min(unused)}}} in a selection, or remove it"
        )
    if (controls := grid.get("controls", 0)) < 0:
        raise QkjaxError(f"controls is {controls}: expected a whole number of at least 0")
    if controls > MOST_SPECS:
        raise QkjaxError(f"a grid has more than {MOST_SPECS} controls; use fewer")
    most = len(edits) * len(selections) * math.prod(map(len, values.values())) * (controls + 1)
    if most > MOST_SPECS:
        raise QkjaxError(f"a grid has up to {most:.3g} ablations, expected at most {MOST_SPECS}; use fewer values")
    seeds = [None, *range(controls)]
    specs = []
    for edit, template in product(edits, selections):
        names = list(dict.fromkeys(PLACEHOLDER.findall(str(template))))
        for combination in product(*(values[name] for name in names)):
            chosen = dict(zip(names, combination, strict=True))
            base = Edit(str(edit), str(template), grid.get("key_bias", True), None, grid["match"])
            specs += [_spec(replace(base, control=seed), chosen) for seed in seeds]
    return specs


def _spec(edit: Edit, chosen: Mapping) -> AblationSpec:
    """Makes one ablation from a template of its selection, and from a value for each placeholder in this template."""

    def fill(values: Mapping) -> str:
        return PLACEHOLDER.sub(lambda match: str(values[match[1]]), edit.selection)

    selection = fill(chosen)
    dose = chosen.get(DOSE, np.nan)
    if isinstance(dose, bool) or not isinstance(dose, int | float) or abs(dose) > LARGEST_DOSE:
        raise QkjaxError(f"dose is {repr(dose)[:30]}: expected a number of at most {LARGEST_DOSE:g}")
    without_dose = fill({**chosen, DOSE: "*"}).replace("=*", "")
    condition = " ".join(term for term in without_dose.split() if not term.startswith("layers="))
    layers = ",".join(term.removeprefix("layers=") for term in selection.split() if term.startswith("layers="))
    return AblationSpec(replace(edit, selection=selection), condition or "all", layers, float(dose))


def _as_list(value) -> list:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str | int | float) for item in values):
        raise QkjaxError(f"{value!r} is not a valid list: expected one or more strings or numbers")
    return values
