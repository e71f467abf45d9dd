"""Prints the tables of tokens.md: which measure of a head predicts its attention: `python docs/frames_study.py FOLDER`.

FOLDER keeps the results, so that the second run takes seconds; the first takes about as long as 2,000 forward passes of
DINOv2 ViT-S/14. For every head there are several measures: the weighted cosine in three frames, and map correlations.
Each is correlated (Spearman) with the preference of the head for similar tokens, in three sets of images. Intervals are
95% bootstrap intervals that resample the 72 heads; differences use the same resamples for both measures. The
covariance of the tokens comes from photographs, except in one row, where it comes from the images of the preference.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import rankdata

import qkjax
from qkjax.analyses.preference.tables import by_head
from qkjax.analyses.tokens.photographs import photograph_resamples
from qkjax.analyses.tokens.shares import PAIRS, head_shares, overall, tokens_table
from qkjax.images.generated import patterns
from qkjax.images.scenes import Scene
from qkjax.images.sets import ImageSet
from qkjax.results.intervals import ends_of
from qkjax.results.rows import format_rows
from qkjax.results.store import write_dataset

MODEL = "dinov2-vits14-focus"
SCENES, RESAMPLES = 200, 2000


def photograph_scenes() -> ImageSet[Scene]:
    """The default photographs as scenes. Their masks mean nothing; the preference for similar tokens uses no masks."""
    images = qkjax.images.photographs()

    def read(index: int) -> Scene:
        image = images.read(index)
        target, distractors = np.zeros((2, image.height, image.width), np.uint8)
        middle = image.width // 2
        target[:, :middle], distractors[:, middle:] = 255, 255
        return Scene(image, target, distractors)

    return replace(images, read=read, fingerprint=f"scenes of {images.fingerprint}")


SETS: dict[str, Callable[[], ImageSet[Scene]]] = {
    "pasted": lambda: patterns(SCENES, 0, "pasted"),
    "patterns": lambda: patterns(SCENES, 0),
    "photographs": photograph_scenes,
}


def same_images(scenes: ImageSet[Scene]) -> ImageSet:
    """The images of scenes, without masks."""
    return replace(scenes, read=lambda index: scenes.read(index).image, fingerprint=f"images of {scenes.fingerprint}")


def saved(path: Path, compute: Callable[[Path], xr.Dataset]) -> xr.Dataset:
    """The dataset in a file; if there is no file, it is computed and written."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = path.with_suffix(".partial.npz")
        write_dataset(compute(progress), path)
        progress.unlink(missing_ok=True)
    return xr.load_dataset(path, engine="h5netcdf")


def measures(checkpoint: qkjax.Checkpoint, tokens: xr.Dataset) -> dict[str, np.ndarray]:
    """Each measure of every head, flat."""
    frames = {
        "cosine, plain": {},
        "cosine, folded": {"fold_scale": True},
        "cosine, folded and centred": {"fold_scale": True, "center": True},
    }
    values = {name: qkjax.measure(qkjax.decompose(checkpoint, **frame)) for name, frame in frames.items()}
    by_part = tokens.head_map_correlation
    values = {name: np.asarray(metrics.weighted_cosine) for name, metrics in values.items()}
    values |= {"map correlation": by_part.sel(part="whole").values}
    values |= {f"map correlation, {part}": by_part.sel(part=part).values for part in ("content", "position")}
    return {name: np.asarray(x, np.float64).ravel() for name, x in values.items()}


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlations along the last axis."""
    ranks = [rankdata(x, axis=-1) for x in (first, second)]
    one, other = (x - x.mean(-1, keepdims=True) for x in ranks)
    return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))


def of_four(tokens: xr.Dataset, image_weights: np.ndarray | None = None) -> np.ndarray:
    """The share of content-content in the four parts to which the mean query does not belong, mean over heads."""
    four = head_shares(tokens, "patches", image_weights)[..., 2:]
    return (four[..., -1] / four.sum(-1)).mean((-2, -1))


def in_words(estimate: float, resampled: np.ndarray) -> str:
    """An estimate with its interval."""
    low, high = ends_of(resampled)
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def within_layers(first: np.ndarray, second: np.ndarray, layers: int) -> np.ndarray:
    """The mean over layers of the rank correlations over the heads of a layer, which layers cannot explain."""
    with np.errstate(invalid="ignore"):  # a resample may contain a single head of a layer several times
        return np.nanmean(spearman(*(x.reshape(*x.shape[:-1], layers, -1) for x in (first, second))), axis=-1)


def print_parts(tokens: xr.Dataset) -> None:
    """Prints the shares of position and content in tokens and in logits."""
    columns = ("layer", "position_share", "position_share_halves", "logit_spread", *PAIRS)
    print(format_rows([{name: row[name] for name in columns} for row in tokens_table(tokens)]))
    for name, (mean, low, high) in overall(tokens).items():
        print(f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}]")
    most = (head_shares(tokens).argmax(-1) == PAIRS.index("content_content")).mean()
    print(f"content-content is the largest part in {most:.0%} of the heads")
    weights = photograph_resamples(tokens.photograph.values)
    print(f"of the four parts without the mean: {in_words(of_four(tokens), of_four(tokens, weights))} over all heads")


def print_correlations(values: dict[str, np.ndarray], preference: np.ndarray, layers: int) -> None:
    """Prints the rank correlation of each measure with the preference, what the map correlation adds, and both within
    layers.
    """
    rng, per_layer = np.random.default_rng(0), preference.size // layers
    over_all = rng.integers(0, preference.size, (RESAMPLES, preference.size))
    first = per_layer * np.arange(layers)[:, None]
    within = (first + rng.integers(0, per_layer, (RESAMPLES, layers, per_layer))).reshape(RESAMPLES, -1)
    kinds = ((spearman, over_all), (partial(within_layers, layers=layers), within))
    for measure, x in values.items():
        cells = []
        for correlated, heads in kinds:
            estimates = [correlated(y, preference) for y in (x, values["map correlation"])]
            resampled = [correlated(y[heads], preference[heads]) for y in (x, values["map correlation"])]
            gain = in_words(estimates[1] - estimates[0], resampled[1] - resampled[0])
            cells += [in_words(estimates[0], resampled[0]), gain]
        print(f"| {measure} | {' | '.join(cells)} |")


def main(folder: Path) -> None:
    """Computes what is missing in the folder, and prints the tables."""
    checkpoint = qkjax.load(MODEL)
    tokens = saved(folder / "tokens.nc", lambda path: qkjax.token_statistics(checkpoint, partial=path))
    print(tokens.summary)
    print_parts(tokens)
    own = measures(checkpoint, tokens)
    for name, scenes in SETS.items():
        found = saved(folder / f"{name}.nc", lambda p, s=scenes: qkjax.attention_preference(checkpoint, s(), partial=p))
        there = saved(
            folder / f"tokens_{name}.nc",
            lambda p, s=scenes: qkjax.token_statistics(checkpoint, same_images(s()), partial=p),
        )
        here = {"map correlation, tokens of these images": measures(checkpoint, there)["map correlation"]}
        print(f"\n{name}, {found.sizes['image']} images: rank correlation over heads, what the map correlation adds;")
        print("the same within layers")
        print_correlations(own | here, by_head(found)["similarity"].ravel(), found.sizes["layer"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
