"""`qkjax train`, `sweep`: ViTs whose query-key interaction is constrained."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.errors import QkjaxError
from qkjax.train.config import TrainConfig
from qkjax.train.presets import named

Folder = Annotated[Positional[Path], arg(metavar="FOLDER")]


def training_commands(arguments: Sequence[str]) -> dict[str, Callable]:
    """The commands, whose options have for defaults what `--config` names in the arguments.

    Raises:
      QkjaxError: there is no such preset or file.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default="digits")
    trains = bool(arguments) and arguments[0] in ("train", "sweep")
    try:
        base = named(parser.parse_known_args(arguments)[0].config) if trains else TrainConfig()
    except argparse.ArgumentError as error:
        raise QkjaxError(f"{error}: give a preset or a file") from error
    return {"train": _train(base), "sweep": _sweep(base)}


def _train(base: TrainConfig) -> Callable:
    def train(
        out: Folder,
        /,
        config: str = "digits",
        distributed: bool = False,
        run: Annotated[TrainConfig, arg(name="")] = base,
    ) -> None:
        """Train a ViT whose query-key interaction is constrained; the folder then serves as a MODEL.

        The same command goes on with a run that was stopped, to the same bits.

        Args:
          out: folder of the run: config.json, metrics.jsonl, checkpoints, and at the end model.npz.
          config: where the values below start from: digits (a demonstration), digits-study,
            odd-one-out-study, imagenet-s16, or a .json or .toml file, such as another run's config.json.
          distributed: train on the devices of several processes that run this command (jax.distributed).
          run: the run.
        """
        if distributed:
            from qkjax.runtime.hosts import join

            join()
        from qkjax.train.run import train as train_one

        last = train_one(run, out)
        print(f"{out}: accuracy {last['accuracy']:.4f} on held-out images after {last['step']} steps")

    return train


def _sweep(base: TrainConfig) -> Callable:
    def sweep(
        out: Folder,
        constraints: Annotated[Positional[tuple[str, ...]], arg(metavar="CONSTRAINT...")],
        /,
        seeds: int = 5,
        config: str = "digits",
        run: Annotated[TrainConfig, arg(name="")] = base,
    ) -> None:
        """Train with each constraint from each of several seeds; one table, and figures.

        The same command goes on with a sweep that was stopped. Tells accuracies with 95% intervals over
        seeds, and the differences to "free" seed by seed.

        Args:
          out: folder of the sweep: a folder for each run, sweep.nc, sweep.csv, figures.
          constraints: one or more, or schedules, such as: free tied "0-2:tied 3-5:free".
          seeds: from 0 up to so many.
          config: where the values below start from, as for train.
          run: what all runs have in common; constraint and seed are the sweep's.
        """
        from qkjax.train.sweep import sweep as sweep_all

        sweep_all(run, constraints, seeds, out)

    return sweep
