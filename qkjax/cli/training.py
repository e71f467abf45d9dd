"""The commands `qkjax train` and `qkjax sweep`, which train ViTs with a constrained query-key interaction."""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import join_hosts, quoted
from qkjax.errors import QkjaxError
from qkjax.train.config import TrainConfig
from qkjax.train.presets import load_preset

Folder = Annotated[Positional[Path], arg(metavar="FOLDER")]


def training_commands(arguments: Sequence[str]) -> dict[str, Callable]:
    """The commands `train` and `sweep`, by name.

    The defaults of the options are the values in the preset or file that `--config` names.

    Raises:
      QkjaxError: the preset is unknown, or the file cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default="digits")
    trains = bool(arguments) and arguments[0] in ("train", "sweep")
    try:
        base = load_preset(parser.parse_known_args(arguments)[0].config) if trains else TrainConfig()
    except argparse.ArgumentError as error:
        raise QkjaxError(f"{error}; pass the name of a preset, or a file") from error
    return {"train": _train(base), "sweep": _sweep(base)}


def _train(base: TrainConfig) -> Callable:
    def train(
        out: Folder,
        /,
        config: str = "digits",
        fresh: bool = False,
        distributed: bool = False,
        json: bool = False,
        run: Annotated[TrainConfig, arg(name="")] = base,
    ) -> None:
        """Train a ViT with a constrained query-key interaction. Other commands accept the folder of the run as a model.

        Run the same command again to resume after an interruption, with bit-identical results.

        Args:
          out: folder for the run. Training writes config.json, metrics.jsonl and checkpoints to this folder, and
            model.npz at the end.
          config: preset, or file, that sets the defaults of the options below. The presets are digits (a
            demonstration), digits-study, odd-one-out-study and imagenet-s16. A file must be .json or .toml, such as the
            config.json of an earlier run.
          fresh: discard an earlier run in the folder, whatever its options.
          distributed: train on several processes that each run this same command (jax.distributed).
          json: print the last evaluation and the findings as JSON instead of text.
          run: configuration of the run.
        """
        join_hosts(distributed)
        import xarray as xr

        from qkjax.train.findings import run_summary
        from qkjax.train.run import train as train_one

        with _errors_in_options():
            last = train_one(run, out, fresh=fresh)
        dataset = xr.Dataset(attrs={"summary": run_summary(last)})
        row = _one_row(last)
        _print(out, dataset, "", [row], {}, json, out)

    return train


def _sweep(base: TrainConfig) -> Callable:
    def sweep(
        out: Folder,
        constraints: Annotated[Positional[tuple[str, ...]], arg(metavar="CONSTRAINT...")],
        /,
        seeds: int = 5,
        config: str = "digits",
        fresh: bool = False,
        json: bool = False,
        run: Annotated[TrainConfig, arg(name="")] = base,
    ) -> None:
        """Train with several constraints and seeds, and compare the constraints in a table and three figures.

        Run the same command again to resume after an interruption. The table shows the accuracy of each constraint with
        a 95% interval over seeds. The table also shows the difference from the constraint "free", for which runs with
        the same seed are paired.

        Args:
          out: folder for the sweep. The command writes one subfolder per run, sweep.nc, sweep.csv and figures to this
            folder.
          constraints: one or more constraints or schedules, such as: free tied "0-2:tied 3-5:free".
          seeds: number of seeds per constraint; the seeds are 0, 1, ...
          config: preset, or file, that sets the defaults of the options below (see `qkjax train --help`).
          fresh: discard earlier runs of these constraints and seeds, whatever their options.
          json: print the table and the findings as JSON instead of text.
          run: configuration that all runs share, except for constraint and seed, which the sweep sets.
        """
        from qkjax.train.findings import format_table, table
        from qkjax.train.sweep import run_folder, sweep_figures
        from qkjax.train.sweep import sweep as sweep_all

        with _errors_in_options():
            dataset = sweep_all(run, constraints, seeds, out, fresh=fresh)
        rows = table(dataset)
        best = max((row for row in rows if row["seeds"]), key=lambda row: row["accuracy"], default=rows[0])
        model = run_folder(out, best["constraint"], 0)
        _print(out, dataset, format_table(rows), rows, sweep_figures(dataset, rows), json, model)

    return sweep


def _print(out: Path, dataset, text: str, rows: list, figures: dict, as_json: bool, model: Path) -> None:
    from qkjax.analyses.outcome import Description, Written, print_outcome

    description = Description(text, rows, {"sweep": rows} if figures else {}, figures)
    next_step = f"qkjax analyze {quoted(str(model))}"
    print_outcome(str(out), Written(dataset, description, out), as_json=as_json, next_step=next_step)


def _one_row(last: dict) -> dict:
    """The last evaluation as numbers only: one column per layer in place of a list, NaN in place of JSON's null."""
    short = {"weighted_cosine": "cosine"}
    lists = {name: values for name, values in last.items() if isinstance(values, list)}
    row = {name: value for name, value in last.items() if name not in lists}
    row |= {f"{short.get(name, name)}_{layer}": value for name, own in lists.items() for layer, value in enumerate(own)}
    return {name: _or_nan(value) for name, value in row.items()}


def _or_nan(value):
    """The value, or NaN if the value is JSON's null."""
    return float("nan") if value is None else value


@contextmanager
def _errors_in_options() -> Iterator[None]:
    """Replaces settings in library errors, such as `learning_rate=0`, by options, such as `--learning-rate 0`."""
    try:
        yield
    except QkjaxError as error:
        names = "|".join(sorted((field.name for field in fields(TrainConfig)), key=len, reverse=True))

        def option(match: re.Match) -> str:
            name, value = match[1].replace("_", "-"), match[2]
            return {"True": f"--{name}", "False": f"--no-{name}"}.get(value, f"--{name} {value}")

        text = re.sub(rf"(?<![\w.\"'-])({names})=(True\b|False\b|(?=\S))", option, str(error))
        raise QkjaxError(text) from error
