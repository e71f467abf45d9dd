"""Grouping against distance for DINOv3 ViT-B: the weighted cosine of M(offset), for every head and every offset.

    python benchmarks/distance.py                 # 14 x 14 patches: 144 heads and 729 offsets
    python benchmarks/distance.py --grid 32 32    # 3,969 offsets

The weights are random; the time does not depend on them. The floor is the arithmetic of the d x d cores and of their
singular values without vectors, (2 + 8 / 3) d^3 operations per head and offset, at the rate of this machine's float64
matrix products of that size on all cores. CPU seconds count the work of all cores and depend less on other programs;
ratios are those of CPU seconds. No method avoids the products; bidiagonalisation reaches only part of their
rate. `the whole result` is `qkjax.analyze`, with modes, shares and chance.
"""

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import tyro
from table import Line

import qkjax
from qkjax.interaction.rotary.distance import cosine_by_offset
from qkjax.interaction.svd.lapack import cores, one_blas_thread
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary import patch_rotation
from qkjax.vit.rotary_config import Rotary
from qkjax.vit.tree import bare_tree
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.preprocessing import from_architecture

LAYERS, EMBED, HEADS, HEAD_DIM = 12, 768, 12, 64
SAMPLED = 200
"""Number of offsets for which dense matrices are timed, scaled up to all heads and offsets."""


def model() -> Checkpoint:
    """The queries and keys of a ViT-B/16 with the rotary positions of DINOv3, with random weights."""
    config = ViTConfig(
        EMBED, LAYERS, HEADS, HEAD_DIM, 4 * EMBED, (16, 16), posemb="none", class_token=True, registers=4, pool="tok",
        rotary=Rotary(100.0, "centred", pairs="half"),
    )  # fmt: skip
    query, key = np.random.default_rng(0).standard_normal((2, LAYERS, EMBED, HEADS, HEAD_DIM), dtype=np.float32)
    bias, norm = np.zeros((LAYERS, HEADS, HEAD_DIM), np.float32), np.ones((LAYERS, EMBED), np.float32)
    parts = qkjax.QueryKey(query, key, bias, bias, norm, 0 * norm)
    return Checkpoint("random-dinov3-vitb16", config, bare_tree(parts), "random.npz", from_architecture(config))


class Time(NamedTuple):
    """The fastest of several calls, in elapsed seconds and in CPU seconds of all threads."""

    elapsed: float
    cpu: float


def timed(function: Callable, repeats: int = 1) -> Time:
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        function()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return Time(*(min(column) for column in zip(*times, strict=True)))


def floor_of(operations: float) -> Time:
    """Time of as many operations in batches of d x d float64 products, with one thread per core."""
    batch = np.random.default_rng(0).standard_normal((2, 256, HEAD_DIM, HEAD_DIM))

    def run() -> None:
        with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:
            list(threads.map(lambda _: batch[0] @ batch[1], range(8 * cores())))

    scale = operations / (8 * cores() * 256 * 2 * HEAD_DIM**3)
    return Time(*(scale * value for value in timed(run, 5)))


def head_by_head(query: np.ndarray, key: np.ndarray, angles: np.ndarray, count: int) -> None:
    """numpy, one head and offset at a time, with d x d cores."""
    first, second = (np.linalg.qr(x.astype(np.float64), mode="r") for x in (query, key))
    for theta in angles[:count]:
        a, b = np.split(first, 2, axis=1)
        rotated = np.concatenate([a * np.cos(theta) - b * np.sin(theta), b * np.cos(theta) + a * np.sin(theta)], 1)
        np.linalg.svd(rotated @ second.T, compute_uv=False)


def main(grid: tuple[int, int] = (14, 14)) -> list[Line]:
    """Prints the time, the floor, and the time of a loop; returns the lines of the table."""
    checkpoint = model()
    parts, rotation = qkjax.query_key(checkpoint, grid), patch_rotation(checkpoint.config, grid)
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    matrices = LAYERS * HEADS * offsets
    operations = matrices * (2 + 8 / 3) * HEAD_DIM**3
    every = timed(lambda: cosine_by_offset(*parts[:2], rotation.angles, grid, rotation.pairs), 2)
    whole = timed(lambda: qkjax.analyze(checkpoint, grid=grid))
    floor = floor_of(operations)
    angles = np.random.default_rng(0).uniform(-3, 3, (SAMPLED, HEAD_DIM // 2))
    with one_blas_thread():
        loop = timed(lambda: head_by_head(parts.query_kernel[0, :, 0], parts.key_kernel[0, :, 0], angles, SAMPLED), 2)
    loop = Time(*(matrices / SAMPLED * value for value in loop))
    print(f"{jax.devices()[0].device_kind}, {cores()} of {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{LAYERS * HEADS} heads, {offsets} offsets: {matrices} cores, {operations / 1e9:.0f} GFLOP")
    print("| | elapsed seconds | CPU seconds | times the floor |\n|---|---|---|---|")
    rows = {"cosine of every offset": every, "the whole result (analyze)": whole, "floor": floor,
            "numpy, one core at a time on one thread, x heads": loop}  # fmt: skip
    for name, value in rows.items():
        print(f"| {name} | {value.elapsed:.2f} | {value.cpu:.2f} | {value.cpu / floor.cpu:.1f} |")
    what = f"cosine of {offsets} offsets, ViT-B"
    return [
        Line(what, every.elapsed, "floor", floor.elapsed),
        Line(what, every.elapsed, "numpy, one at a time", loop.elapsed),
    ]


if __name__ == "__main__":
    tyro.cli(main)
