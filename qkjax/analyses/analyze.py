"""The main job: checkpoint -> modes -> metrics -> dataset, table and figures in a folder."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from qkjax import figures
from qkjax.analyses.targets import by_name
from qkjax.errors import QkjaxError
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interaction.query_key import QueryKey
from qkjax.results.modes import format_table, layer_table, to_dataset
from qkjax.results.rows import write_csv
from qkjax.results.store import write_dataset
from qkjax.vit.tree import query_key
from qkjax.weights.load import Checkpoint, load, origin


class Options(NamedTuple):
    """The frame in which M is taken; formulas in `decompose`."""

    fold_scale: bool = False
    center: bool = False
    normalize: bool = False

    @classmethod
    def checked(cls, fold_scale: bool, center: bool, normalize: bool) -> "Options":
        """The options, if they go together.

        Raises:
          QkjaxError: `center` without `fold_scale`.
        """
        if center and not fold_scale:
            raise QkjaxError("--center takes out a direction of x, on which M acts only with --fold-scale: give both")
        return cls(fold_scale, center, normalize)


def analyze_models(names: tuple[str, ...], out: Path | None, options: Options, settings: Mapping) -> None:
    """Analyses each model in turn into a folder of its own, then compares them if they are several.

    Raises:
      QkjaxError: a model cannot be read or a result not written; models before it are complete.
    """
    checkpoints = by_name([load(name, **settings) for name in names]).values()
    origins = [origin(name, settings) for name in names]
    if out is not None and out.exists() and not out.is_dir():
        raise QkjaxError(f"{out} is a file, and results need a folder: give another --out")
    base = out or Path("results")
    single = len(checkpoints) == 1
    measured = {}
    for checkpoint, where in zip(checkpoints, origins, strict=True):
        folder = base if single and out else base / checkpoint.name
        measured[checkpoint.name] = analyze_one(checkpoint, folder, options, where)
    if not single:
        for path in figures.save(figures.cosine_by_layer(measured), base / "cosine_by_layer"):
            print(f"wrote {path}", file=sys.stderr)


def modes_of(parts: QueryKey, options: Options) -> Modes:
    """The modes of a model in the frame asked for."""
    scale = parts.norm_scale if options.fold_scale else None
    return decompose(*parts[:2], norm_scale=scale, center=options.center, normalize=options.normalize)


def analyze_one(checkpoint: Checkpoint, folder: Path, options: Options, where: Mapping[str, str]) -> Metrics:
    """Decomposes one model, prints its table and writes its results.

    Args:
      where: the `origin` of the checkpoint, by which `qkjax report` finds it again.

    Raises:
      QkjaxError: a result cannot be written.
    """
    name = checkpoint.name
    print(f"{name}: decomposing {checkpoint.config.depth} x {checkpoint.config.heads} heads", file=sys.stderr)
    parts = query_key(checkpoint.params)
    modes = modes_of(parts, options)
    metrics, bias = measure(modes), bias_terms(parts)
    rows = layer_table(metrics, bias)
    print(f"{name}\n{format_table(rows)}", flush=True)
    attrs = {
        "model": name,
        "source": Path(checkpoint.source).name,
        **where,
        "config": json.dumps(checkpoint.config.to_dict()),
        "options": json.dumps(options._asdict()),
    }
    write_dataset(to_dataset(modes, metrics, bias, attrs), folder / "modes.nc")
    write_csv(rows, folder / "layers.csv")
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
