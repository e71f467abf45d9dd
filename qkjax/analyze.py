"""The main job: checkpoint -> modes -> metrics -> dataset, table and figures in a folder."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from qkjax import figures, results
from qkjax.errors import QkjaxError
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import decompose
from qkjax.vit.tree import attention
from qkjax.weights.load import Checkpoint, load


class Options(NamedTuple):
    """The frame in which M is taken; formulas in `decompose`."""

    fold_scale: bool = False
    center: bool = False
    normalize: bool = False


def analyze_models(names: tuple[str, ...], out: Path | None, options: Options, overrides: Mapping) -> None:
    """Analyses each model in turn into a folder of its own, then compares them if they are several.

    Raises:
      QkjaxError: a model cannot be read or a result not written; models before it are complete.
    """
    checkpoints = [load(name, **overrides) for name in names]
    labels = [c.name for c in checkpoints]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise QkjaxError(f"two models are called {min(twice)!r}: rename a file, or analyse them apart")
    if out is not None and out.exists() and not out.is_dir():
        raise QkjaxError(f"{out} is a file, and results need a folder: give another --out")
    base = out or Path("results")
    single = len(checkpoints) == 1
    measured = {}
    for checkpoint in checkpoints:
        folder = base if single and out else base / checkpoint.name
        measured[checkpoint.name] = analyze_one(checkpoint, folder, options)
    if not single:
        for path in figures.save(figures.cosine_by_layer(measured), base / "cosine_by_layer"):
            print(f"wrote {path}", file=sys.stderr)


def analyze_one(checkpoint: Checkpoint, folder: Path, options: Options) -> Metrics:
    """Decomposes one model, prints its table and writes its results.

    Raises:
      QkjaxError: a result cannot be written.
    """
    name = checkpoint.name
    print(f"{name}: decomposing {checkpoint.config.depth} x {checkpoint.config.heads} heads", file=sys.stderr)
    parts = attention(checkpoint.params)
    modes = decompose(
        parts.query_kernel,
        parts.key_kernel,
        norm_scale=parts.norm_scale if options.fold_scale else None,
        center=options.center,
        normalize=options.normalize,
    )
    metrics, bias = measure(modes), bias_terms(parts)
    rows = results.layer_table(metrics, bias)
    print(f"{name}\n{results.format_table(rows)}", flush=True)
    attrs = {
        "model": name,
        "source": Path(checkpoint.source).name,
        "config": json.dumps(checkpoint.config.to_dict()),
        "options": json.dumps(options._asdict()),
    }
    results.write_dataset(results.to_dataset(modes, metrics, bias, attrs), folder / "modes.nc")
    results.write_csv(rows, folder / "layers.csv")
    drawn = {
        "cosine_by_layer": figures.cosine_by_layer({name: metrics}),
        "cosine_histograms": figures.cosine_histograms(name, metrics),
        "spectra": figures.spectra(name, metrics),
        "head_map": figures.head_map(name, metrics),
        "symmetry_by_layer": figures.symmetry_by_layer(name, metrics),
    }
    for stem, figure in drawn.items():
        figures.save(figure, folder / stem)
    print(f"wrote modes.nc, layers.csv and {len(drawn)} figures (png, pdf) to {folder}", file=sys.stderr)
    return metrics
