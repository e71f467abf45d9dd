"""Trains models that differ in constraint and seed, and collects their results."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.errors import QkjaxError
from qkjax.results.annotate import Label, annotated
from qkjax.results.rows import Row, write_csv
from qkjax.results.store import require_own, versions, write_dataset
from qkjax.runtime.files import discard, temporaries
from qkjax.runtime.folders import check_folder
from qkjax.runtime.lock import exclusive
from qkjax.train.config import TrainConfig
from qkjax.train.findings import sweep_summary, table
from qkjax.train.folder import FACTS, METRICS
from qkjax.train.records import ROTARY_MEASURES, evaluations, read_facts, read_metrics
from qkjax.train.run import DivergedError, train

LABELS = {
    "loss": Label("training loss", "nat", "Loss on the last training batch before the evaluation."),
    "accuracy": Label("accuracy", "1", "Share of held-out images that are classified correctly."),
    "validation_loss": Label("validation loss", "nat", "Mean cross-entropy on the held-out images."),
    "weighted_cosine": Label(
        "weighted cosine", "1", "Mean cosine of the modes, weighted by singular value, and averaged over heads."
    ),
    "same_place_cosine": Label(
        "weighted cosine at the same place", "1", "Weighted cosine of Wq Wk^T, averaged over heads (rotary positions)."
    ),
    "place_share": Label(
        "share that depends on place", "1", "Share of the interaction that depends on place, averaged over heads."
    ),
    "constraint": Label("constraint", "1", "Constraint on the query-key interaction, or schedule by layer."),
    "seed": Label("seed", "1", "Random seed of the initialisation, of the data split, and of the order of the images."),
    "step": Label("step", "1", "Number of training steps before the evaluation."),
}
MEASURES = ("loss", "accuracy", "validation_loss")
DATASET, TABLE, FIGURES = "sweep.nc", "sweep.csv", ("accuracy", "curves", "cosines")
OWN = (DATASET, TABLE, *(f"{stem}{suffix}" for stem in FIGURES for suffix in (".png", ".pdf")))


def sweep(
    config: TrainConfig, constraints: Sequence[str], seeds: int, folder: str | Path, *, fresh: bool = False
) -> xr.Dataset:
    """Trains one model per constraint and seed, and writes the joint results.

    The function prints only one progress bar per run, to standard error. The same call resumes an interrupted sweep.
    Finished runs are not trained again. The folder contains one folder per run, sweep.nc (the returned dataset),
    sweep.csv (see `table`) and the figures accuracy, curves and cosines. If a run diverges, all other runs continue,
    and the values of the diverged run are NaN.

    Args:
      config: the configuration that all runs share. The sweep replaces the constraint and the seed of this
        configuration.
      constraints: one or more constraints or schedules, such as ("free", "tied", "0-2:tied 3-5:free").
      seeds: number of seeds per constraint; the seeds are 0, 1, ...
      folder: folder of the sweep.
      fresh: discard earlier runs of these constraints and seeds, whatever their configuration.

    Returns:
      The dataset of `collect`. The attribute `summary` of the dataset states the findings in a few sentences.

    Raises:
      QkjaxError: there is no constraint, a constraint is repeated, `seeds` is below 1, another process is using the
        folder, or `train` raises QkjaxError. Finished runs remain in the folder.

    Example:
      dataset = sweep(TrainConfig(steps=300), ("free", "tied"), 3, "runs/two")
      print(dataset.attrs["summary"])

    Example:
      >>> import qkjax
      >>> config = qkjax.TrainConfig(width=16, depth=1, heads=2, mlp_dim=16, steps=4, warmup=1, every=4, batch=16)
      >>> result = qkjax.sweep(config, ["free", "tied"], 1, "sweep")
      >>> sorted(result.sizes)
      ['constraint', 'layer', 'seed', 'step']
    """
    folder = Path(folder)
    if not constraints or len(set(constraints)) < len(constraints):
        raise QkjaxError(f"constraints={tuple(constraints)!r}: expected one or more constraints without repetitions")
    if seeds < 1:
        raise QkjaxError(f"seeds={seeds}: expected a whole number of at least 1")
    runs = [
        replace(config, constraint=constraint, seed=seed).checked()
        for seed in range(seeds)
        for constraint in constraints
    ]
    with exclusive(folder):
        discard(temporaries(folder / name for name in OWN))  # a process that was killed left these files
        require_own(folder / DATASET)
        for run in runs:
            check_folder(run_folder(folder, run.constraint, run.seed))
        for number, run in enumerate(runs, start=1):
            try:
                label = f"run {number} of {len(runs)}: {run.constraint}, seed {run.seed}"
                train(run, run_folder(folder, run.constraint, run.seed), label=label, fresh=fresh)
            except DivergedError:
                pass  # its values in the dataset are NaN
        dataset = collect(config, constraints, seeds, folder)
        rows = table(dataset)
        write_dataset(dataset, folder / DATASET)
        write_csv(rows, folder / TABLE)
        for stem, draw in sweep_figures(dataset, rows).items():
            figures.save(draw(), folder / stem)
    return dataset


def sweep_figures(dataset: xr.Dataset, rows: Sequence[Row]) -> dict:
    """A dict from the stems of figure files to functions that draw the figures of a sweep."""
    draw = (
        lambda: figures.sweep_accuracy(dataset, rows),
        lambda: figures.sweep_curves(dataset),
        lambda: figures.sweep_cosines(dataset),
    )
    return dict(zip(FIGURES, draw, strict=True))


def run_folder(folder: Path, constraint: str, seed: int) -> Path:
    """The folder of one run of a sweep."""
    return folder / re.sub(r"[^\w().-]+", "_", constraint) / f"seed{seed}"


def collect(config: TrainConfig, constraints: Sequence[str], seeds: int, folder: Path) -> xr.Dataset:
    """Collects the metrics of all runs of a sweep in a dataset.

    Returns:
      A dataset with the dimensions constraint, seed, step (of the evaluations) and layer. Three variables have the
      dimensions (constraint, seed, step): `accuracy` (0 to 1) and `validation_loss` (nats) on the held-out images, and
      `loss` (nats) on a training batch. `weighted_cosine` has the dimensions (constraint, seed, step, layer), and is
      the mean over heads of the weighted cosine of `measure`. With rotary positions, `same_place_cosine` and
      `place_share` have the same dimensions. Values of diverged runs are NaN. The attributes are
      `summary`, `config` (JSON), `classes` and `chance` if known, and the versions of the libraries.
    """
    steps = evaluations(config)
    shape, dims = (len(constraints), seeds, len(steps)), ("constraint", "seed", "step")
    values = {name: np.full(shape, np.nan) for name in MEASURES}
    by_layer = ("weighted_cosine", *(ROTARY_MEASURES if config.positions.startswith("rope") else ()))
    layers = {name: np.full((*shape, config.depth), np.nan) for name in by_layer}
    facts: dict = {}
    for (row, name), seed in product(enumerate(constraints), range(seeds)):
        own = run_folder(folder, name, seed)
        facts = facts or read_facts(own / FACTS)
        for place, line in enumerate(read_metrics(own / METRICS, config)):
            for measure, array in layers.items():
                array[row, seed, place] = line[measure]
            for measure, array in values.items():
                array[row, seed, place] = line[measure]
    dataset = xr.Dataset(
        {name: (dims, array) for name, array in values.items()}
        | {name: ((*dims, "layer"), array) for name, array in layers.items()},
        coords={
            "constraint": list(constraints),
            "seed": np.arange(seeds),
            "step": steps,
            "layer": np.arange(config.depth),
        },
        attrs={"config": json.dumps(config.to_dict()), **versions()},
    )
    known = {"classes": facts["classes"], "chance": 1 / facts["classes"]} if facts.get("classes") else {}
    summary = sweep_summary(table(dataset), facts)
    return annotated(dataset, LABELS).assign_attrs(known | {"summary": summary})
