"""Plans of ablations: a grid of edits, as a TOML file.

    [[grid]]
    edit = "drop"
    select = ["grouping={dose} layers={layers}", "contextual={dose} layers={layers}"]
    dose = [0.1, 0.2, 0.4, 0.8]
    layers = ["0-3", "8-11"]
    controls = 5

Every edit is made with every selection, and every `{name}` in a selection takes every value that is listed under that
name. What stands under `dose` is the axis of dose-response curves. Each ablation has as many controls, of random modes
as strong, as `controls` says (seeds 0, 1, ...). A plan may hold several grids.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkjax.analyses.edit import Edit
from qkjax.errors import QkjaxError

FIELDS = {"edit": (str, list), "select": (str, list), "controls": (int,), "key_bias": (bool,)}
PLACE = re.compile(r"\{(\w+)\}")
DOSE = "dose"


class AblationSpec(NamedTuple):
    """One ablation of a plan.

    Attributes:
      edit: what is done.
      condition: what all ablations of one dose-response curve, layer by layer, have in common: the selection without
        the dose and without the layers.
      layers: the selection's "layers=" terms, without that word; "" for all.
      dose: NaN without one.
    """

    edit: Edit
    condition: str
    layers: str
    dose: float


Plan = str | Path | Sequence[AblationSpec] | Sequence[Mapping]
"""A TOML file, the ablations themselves, or grids as dicts."""


def specs_of(plan: Plan) -> list[AblationSpec]:
    """The ablations of a plan, however it is given.

    Raises:
      QkjaxError: an invalid plan.
    """
    if isinstance(plan, str | Path):
        return read_plan(Path(plan))
    plan = list(plan)
    return plan if plan and isinstance(plan[0], AblationSpec) else expand(plan)


def read_plan(path: Path) -> list[AblationSpec]:
    """The ablations of a plan.

    Raises:
      QkjaxError: no such file, no TOML, or no plan.
    """
    try:
        found = tomllib.loads(path.read_text())
    except OSError as error:
        raise QkjaxError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise QkjaxError(f"{path} is no TOML: {error}") from error
    grids = found.get("grid")
    if (
        not grids
        or not isinstance(grids, list)
        or not all(isinstance(grid, dict) for grid in grids)
        or set(found) != {"grid"}
    ):
        raise QkjaxError(f"{path} is no plan: it holds [[grid]] tables, each with edit and select, and nothing else")
    try:
        return expand(grids)
    except QkjaxError as error:
        raise QkjaxError(f"{path}: {error}") from error


def expand(grids: list[Mapping]) -> list[AblationSpec]:
    """All ablations of some grids, each once; of two that are the same the one with a dose counts.

    Raises:
      QkjaxError: a grid that is none.
    """
    lines = [line for grid in grids for line in _grid(grid)]
    first: dict[Edit, AblationSpec] = {}
    for line in lines:
        if line.edit not in first or (np.isnan(first[line.edit].dose) and not np.isnan(line.dose)):
            first[line.edit] = line
    return list(first.values())


def _grid(grid: Mapping) -> list[AblationSpec]:
    for name, kinds in FIELDS.items():
        if name in grid and (not isinstance(grid[name], kinds) or isinstance(grid[name], bool) != (kinds == (bool,))):
            raise QkjaxError(f"{name} is {grid[name]!r}, and wants to be {' or '.join(k.__name__ for k in kinds)}")
    if "edit" not in grid:
        raise QkjaxError("a grid says what its edit is, such as drop")
    edits, selections = (_listed(grid.get(name, "all")) for name in ("edit", "select"))
    values = {name: _listed(grid[name]) for name in grid if name not in FIELDS}
    used = {name for text in selections for name in PLACE.findall(str(text))}
    if missing := used - set(values):
        raise QkjaxError(f"a selection asks for {{{min(missing)}}}, and no list of that name is in its grid")
    if unused := set(values) - used:
        raise QkjaxError(f"{min(unused)} is in no selection: write {{{min(unused)}}} where its values are to go")
    if grid.get("controls", 0) < 0:
        raise QkjaxError("controls is a whole number from 0 up")
    seeds = [None, *range(grid.get("controls", 0))]
    lines = []
    for edit, text in product(edits, selections):
        names = list(dict.fromkeys(PLACE.findall(str(text))))
        for chosen in product(*(values[name] for name in names)):
            filled = dict(zip(names, chosen, strict=True))
            lines += [_spec(str(edit), str(text), filled, grid.get("key_bias", True), seed) for seed in seeds]
    return lines


def _spec(edit: str, text: str, filled: Mapping, key_bias: bool, seed: int | None) -> AblationSpec:
    def fill(values: Mapping) -> str:
        return PLACE.sub(lambda match: str(values[match[1]]), text)

    selection = fill(filled)
    dose = filled.get(DOSE, np.nan)
    if isinstance(dose, bool) or not isinstance(dose, int | float):
        raise QkjaxError(f"dose is {dose!r}, and wants to be a number")
    without = fill({**filled, DOSE: "*"}).replace("=*", "")
    condition = " ".join(term for term in without.split() if not term.startswith("layers="))
    layers = ",".join(term.removeprefix("layers=") for term in selection.split() if term.startswith("layers="))
    return AblationSpec(Edit(edit, selection, key_bias, seed), condition or "all", layers, float(dose))


def _listed(value) -> list:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(item, str | int | float) for item in found):
        raise QkjaxError(f"{value!r} is no list of words or numbers")
    return found
