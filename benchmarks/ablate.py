"""What a plan of ablations costs, in forward passes: aim, 1.2 times the bare passes over the same images.

    python benchmarks/ablate.py            # 100 ablations, DINOv2 ViT-S/14, 64 photographs; some 10 minutes on a CPU

Timed is `qkjax.ablate`: the pass of the original model; new kernels for each ablation, its pass and its effects (with
`--queries` patches per image, all their keys); readouts by class; the saved progress; and once the dataset. Tables and
figures are not timed (they were up to 2026-11-27). The floor is the bare forward pass on the same batches, already
decoded, by one compiled program. It is timed before, in the middle (with the first tenth of the plan done) and after,
since the speed of machines varies. If other work uses the machine, the ratio of the CPU times says more than the ratio
of the elapsed times; both are printed. Programs are compiled before timing.
"""

import contextlib
import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from scan import forward_seconds

import qkjax
from qkjax.analyses.ablate.plan import expand
from qkjax.images.default_set import photographs
from qkjax.images.prefetch import photograph_batches
from qkjax.passes.options import batch_size

MODEL = "dinov2-vits14-focus"


def plan(count: int) -> list:
    """So many ablations, each another: grouping and contextual modes of all layers, dose by dose."""
    doses = np.linspace(0, 1, -(-count // 2) + 2)[1:-1].round(4).tolist()
    return expand([{"edit": "drop", "select": ["grouping={dose}", "contextual={dose}"], "dose": doses}])[:count]


def clocks() -> np.ndarray:
    """The elapsed time and the CPU time of all threads, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def job_seconds(lines: list, images: int, queries: int, folder: Path) -> np.ndarray:
    """Elapsed seconds and CPU seconds of a whole job; what it prints is left out."""
    checkpoint, chosen = qkjax.load(MODEL), photographs().spread(images)[0]
    start = clocks()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        qkjax.ablate(checkpoint, lines, chosen, labels=True, queries=queries, partial=folder)
    return clocks() - start


def main(ablations: int = 100, images: int = 64, queries: int = 16) -> None:
    """Prints seconds and the ratio."""
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}")
    checkpoint = qkjax.load(MODEL)
    size = batch_size(None)
    groups = [range(i, i + size) for i in range(0, images - images % size, size)]
    made = [batch.pixels for batch in photograph_batches(photographs(), groups, size, checkpoint.preprocess, None)]
    scale = images / (len(made) * size)
    lines = plan(ablations)
    with tempfile.TemporaryDirectory() as name:
        job_seconds(lines[:1], images, queries, Path(name) / "compiled")
        bare = [forward_seconds(checkpoint, made, clocks)]
        first = job_seconds(lines[: len(lines) // 10], images, queries, Path(name) / "plan")
        bare.append(forward_seconds(checkpoint, made, clocks))
        print(
            f"so far: bare {bare[0][0]:.2f} and {bare[1][0]:.2f} s, {len(lines) // 10} ablations {first[0]:.1f} s",
            flush=True,
        )
        rest = job_seconds(lines, images, queries, Path(name) / "plan")
        bare.append(forward_seconds(checkpoint, made, clocks))
    floor = np.median(bare, axis=0) * scale
    print(f"{MODEL}, {images} photographs, {len(lines)} ablations, {queries} queries, batch {size}")
    for what, bare_pass, before, after in zip(("elapsed", "CPU"), floor, first, rest, strict=True):
        print(
            f"{what}: bare forward pass {bare_pass:.2f} s, times {len(lines)}: {bare_pass * len(lines):.1f} s; "
            f"plan, begun and gone on with: {before:.1f} + {after:.1f} s; "
            f"{(before + after) / (bare_pass * len(lines)):.3f} times"
        )


if __name__ == "__main__":
    tyro.cli(main)
