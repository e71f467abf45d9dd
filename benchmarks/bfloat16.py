"""How far a scan in bfloat16 finds the images that one in float32 finds.

    python benchmarks/bfloat16.py          # DINOv2 ViT-S/14 at 224 pixels, 300 images; some minutes on a CPU

Images are random crops of the photographs that come with scikit-image and scikit-learn. Both scans rank all of them for
each mode and sign; compared are the nine first. Crops of a photograph overlap, and many images excite a mode about
equally: so the table also says how close the ninth and the tenth are, and how many of bfloat16's nine score, in
float32, at least the ninth's score less 1%.
"""

import os
import platform
import tempfile
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro
from PIL import Image

import qkjax
from qkjax.activations.top_k import Top
from qkjax.images.default_set import photographs
from qkjax.images.sets import ImageSet
from qkjax.images.sources import image_set
from qkjax.weights.checkpoint import Checkpoint

MODEL = "dinov2-vits14-focus"
KEPT = 9
CLOSE = 0.01
STRONGEST = 16


class Agreement(NamedTuple):
    """Of each layer, mode (of all heads) and sign.

    Attributes:
      common: share of float32's nine that are among bfloat16's.
      close: share of bfloat16's nine whose float32 score is at least the ninth's less 1%.
      best: whether the first is the same.
      difference: of the scores of the images in common, relative to float32's; their median.
      gap: of float32's ninth and tenth score, relative to the ninth.
    """

    common: np.ndarray
    close: np.ndarray
    best: np.ndarray
    difference: np.ndarray
    gap: np.ndarray


def crops(count: int, seed: int) -> ImageSet:
    """Squares cut out of the photographs at random, of a third of the short side to all of it."""
    source, rng = photographs(crops=False), np.random.default_rng(seed)
    whole = [source.read(index) for index in range(len(source))]

    def cut(number: int):
        image = whole[number % len(whole)]
        side = rng.integers(min(image.size) // 3, min(image.size), endpoint=True)
        x, y = (int(rng.integers(length - side, endpoint=True)) for length in image.size)
        return f"{number:04d}", 0, partial(Image.Image.crop, image, (x, y, x + int(side), y + int(side)))

    return image_set(f"crops, seed {seed}", [cut(number) for number in range(count)])


def scores(checkpoint: Checkpoint, modes: qkjax.Modes, images: ImageSet, dtype: str) -> np.ndarray:
    """Scores (layers, heads, modes, signs, images) of all images."""
    with tempfile.TemporaryDirectory() as folder:
        options = qkjax.PassOptions(dtype=dtype)
        best = qkjax.top_images(
            checkpoint, images, top=len(images), maps=0, options=options, partial=Path(folder) / "p.npz"
        )
        top = Top(best.value.values, best.image_index.values)
    found = np.empty_like(top.score[0])
    np.put_along_axis(found, top.image[0], top.score[0], axis=-1)
    return found


def compared(exact: np.ndarray, rounded: np.ndarray) -> Agreement:
    """Scores in float32 and in bfloat16, (..., images)."""
    order, other = (np.argsort(-x, axis=-1, kind="stable") for x in (exact, rounded))
    first, chosen = order[..., :KEPT], other[..., :KEPT]
    is_common = (first[..., :, None] == chosen[..., None, :]).any(-1)
    ranked = np.take_along_axis(exact, order[..., : KEPT + 1], -1)
    ninth, tenth = ranked[..., KEPT - 1 : KEPT], ranked[..., KEPT]
    is_close = np.take_along_axis(exact, chosen, -1) >= ninth - CLOSE * abs(ninth)
    change = abs(np.take_along_axis(rounded, first, -1) / ranked[..., :KEPT] - 1)
    return Agreement(
        is_common.mean(-1),
        is_close.mean(-1),
        first[..., 0] == chosen[..., 0],
        np.ma.median(np.ma.masked_array(change, ~is_common), axis=-1).filled(np.nan),
        (ninth[..., 0] - tenth) / abs(ninth[..., 0]),
    )


def line(name: str, found: Agreement) -> str:
    """A row of the table: means, and medians of what is relative."""
    shares = [f"{x.mean():.1%}" for x in (found.common, found.close, found.best)]
    medians = [f"{np.nanmedian(x):.2%}" for x in (found.difference, found.gap)]
    return f"| {name} | {' | '.join([*shares, *medians])} |"


def table(found: Agreement) -> str:
    """Of the first, the middle, the last and all layers; of the strongest modes and of all."""
    depth = len(found.common)
    layers = {f"layer {i}": slice(i, i + 1) for i in (0, depth // 2, depth - 1)} | {"all layers": slice(None)}
    head = ("", "of nine in common", "of nine, within 1%", "same best image", "scores differ by", "ninth and tenth by")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, layer in layers.items():
        for which, mode in {f"{STRONGEST} strongest modes": slice(STRONGEST), "all modes": slice(None)}.items():
            lines.append(line(f"{name}, {which}", Agreement(*(x[layer, :, mode] for x in found))))
    return "\n".join(lines)


def main(images: int = 300, seed: int = 0) -> None:
    """Prints the table, and what chance would give."""
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    print(f"{date.today()}, {device}, Python {platform.python_version()}, jax {jax.__version__}")
    checkpoint = qkjax.load(MODEL)
    modes = qkjax.decompose(checkpoint)
    found = crops(images, seed)
    exact, rounded = (scores(checkpoint, modes, found, dtype) for dtype in ("float32", "bfloat16"))
    print(f"{MODEL}, {images} random crops (seed {seed}), score product; by chance {KEPT / images:.1%} in common")
    agreement = compared(exact, rounded)
    print(table(agreement))
    print(f"of a mode and sign at the worst {agreement.common.min() * KEPT:.0f} of {KEPT} in common")


if __name__ == "__main__":
    tyro.cli(main)
