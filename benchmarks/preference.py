"""What measuring attention preference costs, in forward passes: aim, 1.1 times the bare passes over the same scenes.

    python benchmarks/preference.py        # a ViT-B/16 at 224 pixels with random weights; some minutes on a CPU

Timed is `qkjax.attention_preference`: scenes generated in threads, masks resized to the patch grid, forward pass,
masses of all heads, anisotropy, saved progress; and the modes, their metrics and the dataset (not timed until
2026-11-27). The
floor is the bare forward pass on the same batches, already generated. Speed does not depend on the weights. Both are
timed in turns, since the speed of machines varies.
"""

import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from scan import ROUNDS, forward_seconds

import qkjax
from qkjax.images.generated import patterns
from qkjax.images.preprocess import PRESETS
from qkjax.images.scenes import blank_scene, crop_to_model
from qkjax.passes.inputs import batches_with_masks
from qkjax.passes.options import batch_size
from qkjax.weights.checkpoint import Checkpoint

BASE = qkjax.ViTConfig(
    width=768, depth=12, heads=12, head_dim=64, mlp_dim=3072, patch_size=(16, 16), grid=(14, 14), pool="tok",
    class_token=True,
)  # fmt: skip


def main(images: int = 64, seed: int = 0) -> None:
    """Prints images per second and the ratio."""
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}")
    params = jax.jit(qkjax.ViT(BASE).init)(jax.random.key(seed), np.zeros((1, 224, 224, 3), np.float32))["params"]
    checkpoint = Checkpoint("base", BASE, jax.tree.map(np.asarray, params), "", PRESETS["bigvision-small-crop"])
    size = batch_size(None)
    images -= images % size
    scenes, options = patterns(images, seed), qkjax.PassOptions()
    groups = [range(i, i + size) for i in range(0, images, size)]
    batches = batches_with_masks(checkpoint, scenes, options, crop_to_model, blank_scene)
    made = [batch.pixels for batch in batches(groups)]
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as name:

        def measured(count: int) -> float:
            path = Path(name) / "partial.npz"
            path.unlink(missing_ok=True)
            start = time.perf_counter()
            qkjax.attention_preference(checkpoint, patterns(count, seed), options=options, partial=path)
            return time.perf_counter() - start

        measured(size)  # compiles
        for _ in range(ROUNDS):
            bare.append(forward_seconds(checkpoint, made))
            whole.append(measured(images))
    floor, pace = images / np.median(bare), images / np.median(whole)
    print(f"ViT-B/16, {images} scenes, batch {size}, medians of {ROUNDS}")
    print(f"bare forward pass {floor:.2f} images/s, preference {pace:.2f}: {floor / pace:.3f} times the forward pass")


if __name__ == "__main__":
    tyro.cli(main)
