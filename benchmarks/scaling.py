"""How time grows with the size of the work: measured points, the line through them, and a figure.

    python benchmarks/scaling.py --out docs/images        # some minutes on a CPU

Decomposition: random kernels of more and more layers, and of wider ones, against the multiply-adds of the two thin
products that no method avoids, and what a head's small matrices take besides (`CORE`). Scan: models of more and more
multiply-adds an image (forward pass and projections), and more and more images. Decoding: JPEG files of ImageNet's
size, one thread. Lines go through the origin, by least squares of relative errors; the spread is the largest distance
of a point from its line.
"""

import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from decompose import best
from matplotlib.figure import Figure
from scan import save_photographs, step_seconds

import qkjax
from qkjax.activations.top_maps import empty
from qkjax.analyses.top_images.compute import MAPPED, scan_step
from qkjax.figures.style import COLOURS, DPI, MARKERS, WIDTH, styled
from qkjax.images.preprocess import PRESETS, picture
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.checkpoint import Checkpoint

SHAPES = [(3, 384, 6), (6, 384, 6), (12, 384, 6), (24, 384, 6), (12, 576, 9), (12, 768, 12), (12, 1024, 16)]
MODELS = [(4, 192), (8, 192), (12, 192), (6, 384), (12, 384)]
CORE = 24
"""Cholesky factors, solving and SVD of head_dim x head_dim take about the time of products of 24 head_dim more rows."""
HEAD_DIM, SIDE, PATCH, BATCH = 64, 224, 16, 8


def decomposition() -> list[tuple[float, float]]:
    """(multiply-adds, seconds) of each shape: layers, embed, heads."""
    found = []
    for layers, embed, heads in SHAPES:
        kernels = np.random.default_rng(0).standard_normal((2, layers, embed, heads, HEAD_DIM), dtype=np.float32)
        query, key = map(jnp.asarray, kernels)
        products = 4.0 * layers * heads * (embed + CORE * HEAD_DIM) * HEAD_DIM**2
        found.append((products, best(lambda query=query, key=key: qkjax.decompose(query, key), 3)))
    return found


def scan(rounds: int = 3) -> list[tuple[float, float]]:
    """(multiply-adds, seconds) of one image for each model: depth, width."""
    found, pixels = [], np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    for depth, width in MODELS:
        config = qkjax.ViTConfig(
            width=width, depth=depth, heads=width // HEAD_DIM, head_dim=HEAD_DIM, mlp_dim=4 * width,
            patch_size=(PATCH, PATCH), grid=(SIDE // PATCH,) * 2, pool="tok", class_token=True,
        )  # fmt: skip
        params = jax.jit(qkjax.ViT(config).init)(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))["params"]
        checkpoint = Checkpoint("scaling", config, jax.tree.map(np.asarray, params), "", PRESETS["squash"])
        modes = qkjax.decompose(*query_key_kernels(params))
        step = scan_step(checkpoint, modes, "norm", ("product",), qkjax.PassOptions())
        top = empty((1, depth, config.heads, HEAD_DIM), 8, MAPPED, (SIDE // PATCH) ** 2)
        tokens = (SIDE // PATCH) ** 2 + 1
        forward = depth * tokens * (12 * width**2 + 2 * tokens * width)
        seconds = min(step_seconds(step, top, [pixels] * 2) for _ in range(rounds)) / (2 * BATCH)
        found.append((forward + 2.0 * depth * tokens * width**2, seconds))
    return found


def decoding(count: int = 60) -> float:
    """Images a second that one thread reads, resizes and crops."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_photographs(Path(folder), count)
        start = time.perf_counter()
        for index in range(count):
            picture(saved.read(index), PRESETS["hf-dinov2"])
        return count / (time.perf_counter() - start)


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds for each multiply-add, and the largest relative distance of a point."""
    work, seconds = np.array(points).T
    rate = float((work / seconds).sum() / ((work / seconds) ** 2).sum())
    return rate, float(abs(rate * work / seconds - 1).max())


def draw(points: dict[str, list[tuple[float, float]]]) -> Figure:
    with styled():
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        for axes, (name, found), colour, marker in zip(
            figure.subplots(1, 2), points.items(), COLOURS[:2], MARKERS[:2], strict=True
        ):
            work, seconds = np.array(found).T
            axes.plot([0, work.max() / 1e9], [0, line(found)[0] * work.max()], color="black", linewidth=0.8)
            axes.plot(work / 1e9, seconds, linestyle="", color=colour, marker=marker)
            axes.set(xlabel="G multiply-adds", ylabel="seconds", title=name, xlim=(0, None), ylim=(0, None))
        return figure


def main(out: Path | None = None) -> None:
    """Prints points and lines; draws them into a folder, if one is given."""
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}")
    points = {"decomposition": decomposition(), "scan, one image": scan()}
    for name, found in points.items():
        rate, spread = line(found)
        print(f"{name}: {1e-9 / rate:.1f} G multiply-adds a second, points within {spread:.0%} of the line")
        for work, seconds in found:
            print(f"  {work / 1e9:8.3f} G {seconds:8.4f} s")
    print(f"decoding: {decoding():.0f} images per second per thread")
    if out:
        draw(points).savefig(out / "scaling.png", dpi=DPI)


if __name__ == "__main__":
    tyro.cli(main)
