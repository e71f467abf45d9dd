"""Draws the figures and prints the table of rotary.md: `python docs/rotary_study.py RUNS`.

RUNS contains the sweeps that rotary.md lists: digits-learned, digits-sincos2d, digits-rope and digits-rope+learned.
Sweeps that are missing are left out. Intervals are Student's 95% intervals over seeds.
"""

import sys
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t

import qkjax
from qkjax.figures.style import COLOURS, GREY, MARKERS, WIDTH, save, styled

IMAGES = Path(__file__).parent / "images"
POSITIONS = ("learned", "sincos2d", "rope", "rope+learned")
CHANCE = "chance, 95% of layers"
STYLE = dict(zip(POSITIONS, zip(COLOURS, MARKERS, strict=False), strict=False))


def interval(values: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds, and half of the width of its 95% interval."""
    count = values.shape[axis]
    return values.mean(axis), t.ppf(0.975, count - 1) * values.std(axis, ddof=1) / np.sqrt(count)


def analysed(folder: Path, seeds: int) -> list[xr.Dataset]:
    """`qkjax analyze` of the final model of every seed."""
    return [qkjax.analyze(qkjax.load(folder / "free" / f"seed{seed}")) for seed in range(seeds)]


def cosines(sweeps: dict, final: dict) -> Figure:
    """The weighted cosine of every layer at the end of training, for each kind of positions, with chance."""
    with styled():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        null = [float(runs[0].attrs["null_weighted_cosine"]) for runs in final.values()]
        axes.axhspan(-max(null), max(null), color=GREY, alpha=0.35, linewidth=0, label=CHANCE)
        axes.axhline(0, color="black", linewidth=0.6)
        for place, (name, sweep) in enumerate(sweeps.items()):
            mean, half = interval(sweep.weighted_cosine.isel(constraint=0, step=-1).transpose("seed", "layer").values)
            colour, marker = STYLE[name]
            layers = np.arange(len(mean)) + 0.09 * (place - (len(sweeps) - 1) / 2)
            axes.errorbar(layers, mean, half, fmt=marker, color=colour, markersize=4, capsize=2, label=name)
        axes.set(xlabel="layer", ylabel="weighted cosine of the modes")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return figure


def shares(sweeps: dict, final: dict) -> Figure:
    """The share that depends on place during training, one line per layer, with chance."""
    rotary = {name: sweep for name, sweep in sweeps.items() if "place_share" in sweep}
    with styled():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        panels = figure.subplots(1, len(rotary), sharey=True, squeeze=False)[0]
        for axes, (name, sweep) in zip(panels, rotary.items(), strict=True):
            null = final[name][0]
            chance, width = float(null.null_position_share), float(null.null_position_share_width.sel(scope="layer"))
            axes.axhspan(chance - width, chance + width, color=GREY, alpha=0.35, linewidth=0, label=CHANCE)
            values = sweep.place_share.isel(constraint=0).transpose("seed", "step", "layer").values
            mean, half = interval(values)
            for layer in range(mean.shape[1]):
                colour, marker = COLOURS[layer], MARKERS[layer]
                style = {
                    "marker": marker,
                    "color": colour,
                    "markersize": 3,
                    "linewidth": 1,
                    "capsize": 1,
                    "elinewidth": 0.6,
                }
                places = sweep.step + 8 * (layer - 2.5)
                axes.errorbar(places, mean[:, layer], half[:, layer], label=f"layer {layer}", **style)
            axes.set(title=name, xlabel="training step")
        panels[0].set_ylabel("share that depends on place")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return figure


def distances(final: dict) -> Figure:
    """The weighted cosine of M(delta) against distance at the end of training, one line per layer, with chance."""
    rotary = {name: runs for name, runs in final.items() if "distance_cosine" in runs[0]}
    with styled():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        panels = figure.subplots(1, len(rotary), sharey=True, squeeze=False)[0]
        for axes, (name, runs) in zip(panels, rotary.items(), strict=True):
            width = runs[0].null_distance_cosine_width.sel(scope="layer").values
            distance = runs[0].distance.values
            axes.fill_between(distance, -width, width, color=GREY, alpha=0.35, linewidth=0, label=CHANCE)
            axes.axhline(0, color="black", linewidth=0.6)
            values = np.stack([run.distance_cosine.mean("head").transpose("layer", "distance").values for run in runs])
            mean, half = interval(values)
            for layer in range(len(mean)):
                colour, marker = COLOURS[layer], MARKERS[layer]
                style = {"marker": marker, "color": colour, "markersize": 3, "linewidth": 1, "elinewidth": 0.8}
                places = distance + 0.09 * (layer - 2.5)
                axes.errorbar(places, mean[layer], half[layer], label=f"layer {layer}", **style)
            axes.set(title=name, xlabel="distance (patches)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("weighted cosine of M(delta)")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return figure


def main(runs: Path) -> None:
    """Draws all figures, and prints a row for each kind of positions."""
    sweeps = {
        name: xr.load_dataset(path) for name in POSITIONS if (path := runs / f"digits-{name}" / "sweep.nc").exists()
    }
    final = {name: analysed(runs / f"digits-{name}", sweep.sizes["seed"]) for name, sweep in sweeps.items()}
    for stem, figure in {
        "rotary_cosines": cosines(sweeps, final),
        "rotary_shares": shares(sweeps, final),
        "rotary_distances": distances(final),
    }.items():
        save(figure, IMAGES / stem, (".png",))
    learned = sweeps.get("learned")
    for name, sweep in sweeps.items():
        accuracy = 100 * sweep.accuracy.isel(constraint=0, step=-1).values
        mean, half = interval(accuracy)
        row = f"| `{name}` | {mean:.1f} [{mean - half:.1f}, {mean + half:.1f}] |"
        if learned is not None and name != "learned":
            difference, half = interval(accuracy - 100 * learned.accuracy.isel(constraint=0, step=-1).values)
            row += f" {difference:+.1f} [{difference - half:+.1f}, {difference + half:+.1f}] |"
        print(row)
        for variable in ("weighted_cosine", "same_place_cosine", "place_share"):
            if variable in sweep:
                values = sweep[variable].isel(constraint=0)
                for step in (0, -1):
                    mean, half = interval(values.isel(step=step).transpose("seed", "layer").values)
                    words = ", ".join(f"{m:+.3f} +- {h:.3f}" for m, h in zip(mean, half, strict=True))
                    print(f"    {variable} at step {int(sweep.step[step])}: {words}")
    for name, results in final.items():
        if "distance_cosine" in results[0]:
            null = results[0]
            print(f"    {name}: chance of the share {float(null.null_position_share):.3f}",
                  f"+- {float(null.null_position_share_width.sel(scope='layer')):.3f} (layer)")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
