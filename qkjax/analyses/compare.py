"""Several models side by side: their curves by training objective, and how two of one architecture differ."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qkjax import figures
from qkjax.analyses.analyze import Options, modes_of
from qkjax.analyses.targets import by_name
from qkjax.errors import QkjaxError
from qkjax.interaction.difference import Difference, difference
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes
from qkjax.results.modes import difference_dataset
from qkjax.results.rows import format_rows, head_mean, write_csv
from qkjax.results.store import write_dataset
from qkjax.vit.tree import query_key
from qkjax.weights import catalogue
from qkjax.weights.load import load

DEPTHS = (0, 0.25, 0.5, 0.75, 1)


def compare_models(names: tuple[str, ...], out: Path, options: Options, settings: Mapping) -> None:
    """Overlays the models' curves; compares those of the first one's architecture with it, mode by mode.

    Raises:
      QkjaxError: a model cannot be read, two have one name, or a result cannot be written.
    """
    checkpoints = by_name([load(name, **settings) for name in names])
    objectives = {name: _objective(name) for name in checkpoints}
    modes: dict[str, Modes] = {}
    for name, checkpoint in checkpoints.items():
        print(f"{name}: decomposing {checkpoint.config.depth} x {checkpoint.config.heads} heads", file=sys.stderr)
        modes[name] = modes_of(query_key(checkpoint.params), options)
    measured = {name: measure(m) for name, m in modes.items()}
    rows = [row for name, m in measured.items() for row in curve_rows(name, objectives[name], m)]
    write_csv(rows, out / "compare.csv")
    print(curve_table(measured, objectives), flush=True)
    figures.save(figures.cosine_by_layer(measured, objectives), out / "cosine_by_depth")
    first, *others = modes
    for name in others:
        if modes[name].u.shape == modes[first].u.shape:
            found = difference(modes[first], modes[name])
            by_layer = difference_rows(found)
            print(f"\n{name} against {first}\n{format_rows(by_layer)}", flush=True)
            folder = out / f"{name}-against-{first}"
            write_csv(by_layer, folder / "layers.csv")
            write_dataset(difference_dataset(found, {"first": first, "second": name}), folder / "difference.nc")
            figures.save(figures.difference_map(first, name, found), folder / "difference")
    print(f"wrote compare.csv and figures to {out}", file=sys.stderr)


def curve_rows(name: str, objective: str, metrics: Metrics) -> list[dict]:
    """A row for each layer of one model, for the table of all."""
    weighted, plain = (head_mean(x) for x in (metrics.weighted_cosine, metrics.mean_cosine))
    return [
        {"model": name, "objective": objective, "layer": i, "relative_depth": i / max(len(plain) - 1, 1),
         "weighted_cosine": float(weighted[i]), "mean_cosine": float(plain[i]),
         "null_weighted_cosine": metrics.null.weighted_cosine}
        for i in range(len(plain))
    ]  # fmt: skip


def curve_table(measured: Mapping[str, Metrics], objectives: Mapping[str, str]) -> str:
    """Weighted mean cosine of each model at five depths, between layers interpolated."""
    width = max(len(name) for name in measured)
    lines = ["weighted cosine at depth".ljust(width + 28) + "".join(f"{d:8.2f}" for d in DEPTHS)]
    for name, metrics in measured.items():
        values = head_mean(metrics.weighted_cosine)
        at = np.interp(DEPTHS, np.linspace(0, 1, len(values)), values)
        lines.append(f"{name:<{width}}  {objectives[name]:<26}" + "".join(f"{v:8.3f}" for v in at))
    return "\n".join(lines)


def difference_rows(found: Difference) -> list[dict]:
    """One row a layer, means over heads; overlaps are mean squared cosines of principal angles."""
    columns = {
        "similarity": found.similarity,
        "strength_ratio": found.strength_ratio,
        "query_overlap": (np.asarray(found.query_angles) ** 2).mean(-1),
        "key_overlap": (np.asarray(found.key_angles) ** 2).mean(-1),
        "match_similarity": found.match_similarity.mean(-1),
    }
    means = {name: head_mean(values) for name, values in columns.items()}
    return [{"layer": i, **{n: float(v[i]) for n, v in means.items()}} for i in range(len(found.match))]


def _objective(name: str) -> str:
    """The training objective that the catalogue states; a file of one's own has none there."""
    try:
        return catalogue.entry(name).objective
    except QkjaxError:
        return "objective not stated"
