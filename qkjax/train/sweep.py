"""Many runs that differ in their constraint and their seed, and what they say together."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax import figures
from qkjax.errors import QkjaxError
from qkjax.results.rows import Row, format_rows, write_csv
from qkjax.results.store import versions, write_dataset
from qkjax.train.config import TrainConfig
from qkjax.train.folder import METRICS, read_metrics
from qkjax.train.run import DivergedError, train

REFERENCE = "free"
MEASURES = ("loss", "accuracy", "validation_loss")


def sweep(config: TrainConfig, constraints: Sequence[str], seeds: int, folder: Path) -> xr.Dataset:
    """Trains every constraint from every seed from 0 up, seed by seed, and writes what they say together.

    Runs that are finished are passed over, the one that was stopped goes on. The folder holds a folder for each
    run, sweep.nc, sweep.csv and the figures; the table is printed.

    Raises:
      QkjaxError: no constraint, twice the same, no seed, or whatever `train` raises; runs before it are kept.
    """
    if not constraints or len(set(constraints)) < len(constraints) or seeds < 1:
        raise QkjaxError("a sweep wants one constraint or more, each once, and one seed or more")
    runs = [
        replace(config, constraint=constraint, seed=seed).checked()
        for seed in range(seeds)
        for constraint in constraints
    ]
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run.constraint}, seed {run.seed}", file=sys.stderr)
        try:
            train(run, run_folder(folder, run.constraint, run.seed))
        except DivergedError as error:  # that it does is a result, and no reason not to have the others
            print(f"{error}; the sweep goes on without it", file=sys.stderr)
    dataset = collect(config, constraints, seeds, folder)
    rows = table(dataset)
    numbers = {name: ".2f" for name, value in rows[0].items() if isinstance(value, float)}
    print(format_rows(rows, {"constraint": "", **numbers}))
    write_dataset(dataset, folder / "sweep.nc")
    write_csv(rows, folder / "sweep.csv")
    drawn = {
        "accuracy": figures.sweep_accuracy(dataset, rows),
        "curves": figures.sweep_curves(dataset),
        "cosines": figures.sweep_cosines(dataset),
    }
    for stem, figure in drawn.items():
        figures.save(figure, folder / stem)
    print(f"wrote sweep.nc, sweep.csv and {len(drawn)} figures (png, pdf) to {folder}", file=sys.stderr)
    return dataset


def run_folder(folder: Path, constraint: str, seed: int) -> Path:
    """Where the run of a constraint and a seed lies in a sweep's folder."""
    return folder / re.sub(r"[^\w().-]+", "_", constraint) / f"seed{seed}"


def collect(config: TrainConfig, constraints: Sequence[str], seeds: int, folder: Path) -> xr.Dataset:
    """The metrics of a sweep's finished runs.

    Returns:
      A dataset with dims constraint, seed, step (of the evaluations) and layer: `accuracy` and `validation_loss`
      on held-out images, `loss` of a training batch, `weighted_cosine` (mean over heads) as `measure` gives it.
      NaN where a run has diverged.
    """
    steps = [*range(config.every, config.steps, config.every), config.steps]
    shape, dims = (len(constraints), seeds, len(steps)), ("constraint", "seed", "step")
    values = {name: np.full(shape, np.nan) for name in MEASURES}
    cosines = np.full((*shape, config.depth), np.nan)
    for (row, name), seed in product(enumerate(constraints), range(seeds)):
        for place, line in enumerate(read_metrics(run_folder(folder, name, seed) / METRICS)):
            cosines[row, seed, place] = line["weighted_cosine"]
            for measure, found in values.items():
                found[row, seed, place] = line[measure]
    variables = {name: (dims, found) for name, found in values.items()}
    return xr.Dataset(
        {**variables, "weighted_cosine": ((*dims, "layer"), cosines)},
        coords={
            "constraint": list(constraints),
            "seed": np.arange(seeds),
            "step": steps,
            "layer": np.arange(config.depth),
        },
        attrs={"config": json.dumps(config.to_dict()), **versions()},
    )


def table(dataset: xr.Dataset) -> list[Row]:
    """A row for each constraint, at the last evaluation, all in percent: accuracy with its 95% interval over seeds,
    and the difference to `free`, paired by seed, with its own (Student's t; not corrected for the number of rows).
    NaN where there is one seed, or no `free`; `seeds` are those that did not diverge."""
    last = 100 * dataset.accuracy.isel(step=-1)
    free = last.sel(constraint=REFERENCE).values if REFERENCE in last.constraint.values else np.nan * last[0].values
    rows = []
    for name in dataset.constraint.values:
        values = last.sel(constraint=name).values
        cosine = dataset.weighted_cosine.sel(constraint=name).isel(step=-1).mean("seed").values
        mean, low, high = interval(values)
        difference, below, above = interval(values - free) if name != REFERENCE else (np.nan,) * 3
        rows.append(
            {
                "constraint": str(name), "seeds": int(np.isfinite(values).sum()),
                "accuracy": mean, "low": low, "high": high,
                "to_free": difference, "to_free_low": below, "to_free_high": above,
                **{f"cosine_{layer}": float(value) for layer, value in enumerate(cosine)},
            }
        )  # fmt: skip
    return rows


def interval(values: Float[np.ndarray, "seeds"]) -> tuple[float, float, float]:
    """Mean of the finite values, and the ends of its 95% interval by Student's t; NaN ends for one value."""
    from scipy.stats import t

    values = values[np.isfinite(values)]
    count = len(values)
    mean = float(np.mean(values)) if count else np.nan
    if count < 2:
        return mean, np.nan, np.nan
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half
