"""Prints the tables of tokens.md: which measure of a head predicts its attention: `python docs/frames_study.py FOLDER`.

FOLDER keeps the results, so that the second run takes seconds; the first takes about as long as 2,000 forward passes of
DINOv2 ViT-S/14. For every head there are several measures: the weighted cosine in three frames, and map correlations.
Each is correlated (Spearman) with the preference of the head for similar tokens, in three sets of images. Intervals are
95% bootstrap intervals that resample the 72 heads; differences use the same resamples for both measures. The last two
columns are means of the correlations within layers, and their intervals resample the 12 layers. The covariance of the
tokens comes from photographs, except in one row, where it comes from the images of the preference.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import rankdata

import qkjax
from qkjax.activations.position_content import KEY_PARTS, QUERY_PARTS
from qkjax.analyses.preference.tables import by_head
from qkjax.analyses.tokens.photographs import photograph_resamples
from qkjax.analyses.tokens.shares import PAIRS, head_shares, overall, tokens_table
from qkjax.images.generated import patterns
from qkjax.images.scenes import Scene
from qkjax.images.sets import ImageSet
from qkjax.results.intervals import ends_of, resamples
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
    """Each measure of every head, by layer and head."""
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
    return {name: np.asarray(x, np.float64) for name, x in values.items()}


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlations along the last axis."""
    ranks = [rankdata(x, axis=-1) for x in (first, second)]
    one, other = (x - x.mean(-1, keepdims=True) for x in ranks)
    return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))


def content_shares(tokens: xr.Dataset, image_weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Summaries of the shares of content in the logits, over all heads."""
    shares = head_shares(tokens, "patches", image_weights)
    by_query = shares.reshape(*shares.shape[:-1], len(QUERY_PARTS), len(KEY_PARTS))
    largest = shares.argmax(-1) == PAIRS.index("content_content")
    return {
        "share of the parts with the content of the key": by_query[..., 1].sum(-1).mean((-2, -1)),
        "share of the parts with the content of the query": by_query[..., 2, :].sum(-1).mean((-2, -1)),
        "share of heads whose largest part is content-content": largest.mean((-2, -1)),
        "content-content in the four parts without the mean": (shares[..., 5] / shares[..., 2:].sum(-1)).mean((-2, -1)),
    }


def in_words(estimate: float, resampled: np.ndarray) -> str:
    """An estimate with its interval."""
    low, high = ends_of(resampled)
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def print_shares(tokens: xr.Dataset) -> None:
    """Prints the parts of the logits, by layer and over all heads."""
    print(tokens.summary)
    columns = ("layer", "position_share", "position_share_halves", "logit_spread")
    columns += tuple(f"{pair}{end}" for pair in PAIRS for end in ("", "_low", "_high"))
    print(format_rows([{name: row[name] for name in columns} for row in tokens_table(tokens)]))
    for name, (mean, low, high) in overall(tokens).items():
        print(f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}]")
    resampled = content_shares(tokens, photograph_resamples(tokens.photograph.values))
    for name, share in content_shares(tokens).items():
        print(f"{name}: {in_words(float(share), resampled[name])}")


def print_correlations(own: dict[str, np.ndarray], preference: np.ndarray) -> None:
    """Prints the rank correlation of each measure with the preference, and the gain of the map correlation."""
    heads = np.random.default_rng(0).integers(0, preference.size, (RESAMPLES, preference.size))
    layers, best = resamples(len(preference), 1), "map correlation"
    over_heads = {name: spearman(x.ravel(), preference.ravel()) for name, x in own.items()}
    resampled = {name: spearman(x.ravel()[heads], preference.ravel()[heads]) for name, x in own.items()}
    within = {name: spearman(x, preference) for name, x in own.items()}
    print("| measure | all heads | gain of the map correlation | within layers | gain of the map correlation |")
    for name in own:
        gain, gain_within = over_heads[best] - over_heads[name], within[best] - within[name]
        cells = (
            in_words(over_heads[name], resampled[name]),
            in_words(gain, resampled[best] - resampled[name]),
            in_words(within[name].mean(), layers @ within[name]),
            in_words(gain_within.mean(), layers @ gain_within),
        )
        print(f"| {name} | {' | '.join(cells)} |")
    folded, plain = "cosine, folded", "cosine, plain"
    gain = in_words(over_heads[folded] - over_heads[plain], resampled[folded] - resampled[plain])
    gain_within = within[folded] - within[plain]
    print(f"gain of folded over plain: {gain}; within layers {in_words(gain_within.mean(), layers @ gain_within)}")
    print_layers({name: x.mean(1) for name, x in own.items()}, preference.mean(1))


def print_layers(own: dict[str, np.ndarray], preference: np.ndarray) -> None:
    """Prints the rank correlations of the means of the layers, and the gain of the map correlation."""
    layers = np.random.default_rng(0).integers(0, preference.size, (RESAMPLES, preference.size))
    over = {name: spearman(x, preference) for name, x in own.items()}
    resampled = {name: spearman(x[layers], preference[layers]) for name, x in own.items()}
    ranks = ", ".join(f"{name} {in_words(over[name], resampled[name])}" for name in own)
    print(f"rank correlation of the means of the layers: {ranks}")
    best, folded = "map correlation", "cosine, folded"
    print(f"gain over folded: {in_words(over[best] - over[folded], resampled[best] - resampled[folded])}")


def main(folder: Path) -> None:
    """Computes what is missing in the folder, and prints the tables."""
    checkpoint = qkjax.load(MODEL)
    tokens = saved(folder / "tokens.nc", lambda partial: qkjax.token_statistics(checkpoint, partial=partial))
    print_shares(tokens)
    own = measures(checkpoint, tokens)
    for name, make in SETS.items():
        scenes = make()
        found = saved(folder / f"{name}.nc", lambda p, s=scenes: qkjax.attention_preference(checkpoint, s, partial=p))
        there = saved(
            folder / f"tokens_{name}.nc",
            lambda p, s=scenes: qkjax.token_statistics(checkpoint, same_images(s), partial=p),
        )
        here = {"map correlation, tokens of these images": measures(checkpoint, there)["map correlation"]}
        print(f"\n{name}, {found.sizes['image']} images")
        print_correlations(own | here, by_head(found)["similarity"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
