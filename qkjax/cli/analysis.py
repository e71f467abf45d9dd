"""The commands `qkjax analyze`, `qkjax composition` and `qkjax compare`, which analyse the weights of models."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import FrameName, given_options, quoted
from qkjax.errors import QkjaxError


def analyze(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    frame: FrameName = "plain",
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    heads: Annotated[int | None, arg(metavar="N")] = None,
    rotary_grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    json: bool = False,
) -> None:
    """Decompose the query-key interaction of every head into modes, and write modes.nc, layers.csv and figures.

    The interaction M = Wq Wk^T of a head acts on y = g * x + b, the output of the LayerNorm before attention. Here x is
    the normalised token, g the scale and b the bias of the LayerNorm. In a model with rotary positions, M depends on
    the offset between query and key. The modes are then those of the mean of M over all pairs of positions in a grid of
    patches, and the results also describe how M depends on positions.

    Args:
      models: names of models listed by `qkjax models`, or paths of npz files or tensorstore folders. If the file
        siglip.npz contains two towers, "siglip.npz:img" selects the image tower.
      out: folder for the results; by default results/MODEL. With several models, this folder (by default results)
        contains one subfolder per model, and a figure that compares the models.
      frame: frame of M: plain for M itself, or folded for M with the LayerNorm scale, as with --fold-scale. In both,
        cosines assume that tokens vary equally in all directions of the frame; `qkjax tokens` measures what tokens do.
      fold_scale: include the LayerNorm scale g in M. The modes are then those of diag(g) M diag(g), which acts on the
        normalised token x.
      center: also remove the mean direction, as LayerNorm does. The modes are then those of C diag(g) M diag(g) C,
        where C = I - 11^T / D. Requires --fold-scale.
      normalize: divide M by sqrt(head_dim), so that strengths have the units of attention logits.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      rotary_grid: for models with rotary positions, number of rows and number of columns of patches; by default the
        grid of the model's own resolution.
      json: print the table and the findings as JSON instead of text.
    """
    from qkjax import figures
    from qkjax.analyses.analyze import analyze as compute
    from qkjax.analyses.analyze import describe, overlay
    from qkjax.analyses.decomposition import check_frame, check_grid
    from qkjax.analyses.outcome import outcome, print_json, print_outcome
    from qkjax.analyses.targets import folders, load_models
    from qkjax.runtime.folders import check_folder

    if not models:
        raise QkjaxError("no model given: expected at least one, for example qkjax analyze dinov2-vits14-focus")
    fold_scale = fold_scale or frame == "folded"
    check_frame(fold_scale, center)
    base, results = out or Path("results"), {}
    check_folder(base)
    loaded = load_models(models, given_options(grid=grid, heads=heads))
    for checkpoint, _ in loaded.values():
        check_grid(checkpoint.config, rotary_grid, "rotary_grid", least=2)
    paths = folders(loaded, out, "")
    options = {"fold_scale": fold_scale, "center": center, "normalize": normalize, "grid": rotary_grid}
    for name, (checkpoint, origin) in loaded.items():
        shape = f"{checkpoint.config.depth} x {checkpoint.config.heads}"
        print(f"{name}: decomposing {shape} heads", file=sys.stderr)
        written = outcome(
            paths[name], "modes", None, lambda _, c=checkpoint: compute(c, **options), describe, attrs=origin
        )
        results[name] = written
        if not json:
            print_outcome(name, written, next_step=f"qkjax top-images {quoted(origin['checkpoint'])}")
    if json:
        print_json(list(results.items()))
    if len(results) > 1:
        datasets = {name: written.dataset for name, written in results.items()}
        for path in figures.save(overlay(datasets), base / "cosine_by_layer"):
            print(f"wrote {path}", file=sys.stderr)


def composition(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    norm: Annotated[bool, arg(help_behavior_hint="")] = True,
    grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    heads: Annotated[int | None, arg(metavar="N")] = None,
    json: bool = False,
) -> None:
    """Measure which heads read what earlier heads write, and write composition.nc, tables and figures.

    A head writes with its output-value matrix Wv Wo. A later head reads with its queries, its keys or its values. The
    composition of the two heads is 0 if the later head reads nothing of what the earlier head writes, and about
    1 / sqrt(D) for random matrices. No images are needed.

    Args:
      models: names of models listed by `qkjax models`, or paths of checkpoints.
      out: folder for the results; by default results/MODEL/composition. With several models, each model gets its own
        subfolder.
      norm: ignore the LayerNorm before attention. By default, all matrices include its scale, and exclude the mean over
        the embedding, which LayerNorm removes.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the tables and the findings as JSON instead of text.
    """
    from qkjax.analyses.composition.compute import composition as compute
    from qkjax.analyses.composition.describe import describe
    from qkjax.analyses.outcome import outcome, print_json, print_outcome
    from qkjax.analyses.targets import folders, load_models
    from qkjax.runtime.folders import check_folder

    if not models:
        raise QkjaxError("no model given: expected at least one, for example qkjax composition dinov2-vits14-focus")
    check_folder(out or Path("results"))
    loaded, results = load_models(models, given_options(grid=grid, heads=heads)), {}
    paths = folders(loaded, out, "composition")
    for name, (checkpoint, origin) in loaded.items():
        print(f"{name}: composition", file=sys.stderr)
        results[name] = outcome(
            paths[name],
            "composition",
            None,
            lambda _, c=checkpoint: compute(c, fold_norm=norm),
            describe,
            attrs=origin,
        )
        if not json:
            print_outcome(name, results[name], next_step=f"qkjax analyze {quoted(origin['checkpoint'])}")
    if json:
        print_json(list(results.items()))


def compare(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results/compare"),
    frame: FrameName = "plain",
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    json: bool = False,
) -> None:
    """Compare models by training objective, and compare the modes of models that have the same architecture.

    The modes of a model are compared with the modes of the first model if both models have the same number of layers,
    number of heads, and width.

    Args:
      models: at least two models, as names or paths (see `qkjax analyze --help`).
      out: folder for compare.csv, the figures, and one subfolder per comparison of modes.
      frame: frame of M, plain or folded (see `qkjax analyze --help`).
      fold_scale: include the LayerNorm scale in M (see `qkjax analyze --help`).
      center: also remove the mean direction (see `qkjax analyze --help`). Requires --fold-scale.
      normalize: divide M by sqrt(head_dim), so that strengths have the units of attention logits.
      json: print the tables and the findings as JSON instead of text.
    """
    from qkjax.analyses import compare as by_modes
    from qkjax.analyses.analyze import analyze as compute
    from qkjax.analyses.decomposition import check_frame
    from qkjax.analyses.outcome import Written, outcome, print_json, print_outcome, write_description
    from qkjax.analyses.targets import load_models
    from qkjax.runtime.folders import check_folder, make_folder

    if len(models) < 2:
        raise QkjaxError("compare needs at least two models, for example: qkjax compare original.npz finetuned.npz")
    fold_scale = fold_scale or frame == "folded"
    check_frame(fold_scale, center)
    check_folder(out)
    loaded = {name: checkpoint for name, (checkpoint, _) in load_models(models, {}).items()}
    objectives = {name: by_modes.objective_of(name) for name in loaded}
    chosen = {"fold_scale": fold_scale, "center": center, "normalize": normalize}
    datasets = {}
    for name, checkpoint in loaded.items():
        print(f"{name}: decomposing {checkpoint.config.depth} x {checkpoint.config.heads} heads", file=sys.stderr)
        datasets[name] = compute(checkpoint, **chosen)
    curves = by_modes.describe_curves(datasets, objectives)
    make_folder(out)
    write_description(curves, out)
    (first, original), *others = loaded.items()
    overview = by_modes.curves_dataset(datasets)
    results = [("models", Written(overview, curves, out))]
    for name, other in others:
        if datasets[name]["u"].shape == datasets[first]["u"].shape:
            folder = out / f"{name}-against-{first}"
            both = original, other
            written = outcome(
                folder, "difference", None, lambda _, both=both: by_modes.compare(*both, **chosen), by_modes.describe
            )
            results.append((f"{name} against {first}", written))
    if json:
        print_json(results)
        return
    for title, written in results:
        print_outcome(title, written, next_step=f"qkjax image {quoted(models[0])} chelsea" * (title == results[-1][0]))
