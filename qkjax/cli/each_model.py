"""Runs an analysis of images for each of several models, for commands such as `preference` and `tokens`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import quoted
from qkjax.errors import QkjaxError, ShardFinished

Models = Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")]
Folder = Annotated[Path | None, arg(metavar="FOLDER")]
Count = Annotated[int | None, arg(metavar="N")]
Resolution = Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH")]
Grid = Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")]


def photograph_models(command: str, models: tuple[str, ...], settings: dict, resolution, out) -> dict:
    """A dict from the name of each model to the model and its origin, after checks of the folder and the resolution."""
    from qkjax.analyses.targets import load_models
    from qkjax.passes.inputs import for_photographs, photograph_grid
    from qkjax.runtime.folders import check_folder

    if not models:
        raise QkjaxError(f"no model given: expected at least one, for example qkjax {command} dinov2-vits14-focus")
    check_folder(out or Path("results"))
    loaded = {name: (for_photographs(c), origin) for name, (c, origin) in load_models(models, settings).items()}
    for checkpoint, _ in loaded.values():
        photograph_grid(checkpoint, resolution)
    return loaded


def each_model(
    loaded: dict,
    out: Path | None,
    kind: str,
    overlay: tuple[str, Callable],
    settings: Callable,
    compute: Callable,
    describe: Callable,
    fresh: bool,
    shard: tuple[int, int] | None,
    as_json: bool,
    next_step: str,
) -> None:
    """Runs an analysis for each model, and writes one folder per model, and a figure if there are several models."""
    from qkjax import figures
    from qkjax.analyses.outcome import outcome, print_json, print_outcome, report_unreadable
    from qkjax.analyses.targets import folders

    paths, results = folders(loaded, out, kind), {}
    for name, (checkpoint, origin) in loaded.items():
        print(f"{name}: {kind}", file=sys.stderr)
        try:
            written = outcome(
                paths[name],
                kind,
                settings(checkpoint),
                lambda partial, c=checkpoint: compute(c, partial),
                lambda dataset, c=checkpoint: describe(c, dataset),
                attrs=origin,
                fresh=fresh,
                shard=shard,
            )
        except ShardFinished as finished:
            print(f"{name}: {finished}", file=sys.stderr)
            continue
        if written.description.rows:
            stem = "left_out" if "left_out" in written.dataset else "unreadable"
            report_unreadable(written.dataset, paths[name], stem, "are left out")
            results[name] = written
            if not as_json:
                print_outcome(name, written, next_step=next_step.format(model=quoted(origin["checkpoint"])))
    if as_json and results:
        print_json(list(results.items()))
    stem, draw = overlay
    if len(results) > 1:
        tables = {name: written.description.rows for name, written in results.items()}
        for path in figures.save(draw(tables), (out or Path("results")) / stem):
            print(f"wrote {path}", file=sys.stderr)
