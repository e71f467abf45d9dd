"""Rows of work on the host: decoding of JPEG files, and whole passes over files."""

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

import qkjax
from benchmarks.shapes import checkpoint_of
from qkjax.images.prefetch import photograph_batches
from qkjax.images.preprocess import PRESETS, picture
from qkjax.images.sets import ImageSet
from qkjax.images.sources import open_images

BATCH, DISTINCT = 64, 16


@contextmanager
def jpeg_files(tiny: bool):
    """A set of JPEG files of about the size of ImageNet's, 500 x 375 pixels: smooth noise."""
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (12, 16, 3), np.uint8) for _ in range(DISTINCT))
    pictures = [Image.fromarray(x).resize((500, 375), Image.Resampling.BICUBIC) for x in noise]
    with tempfile.TemporaryDirectory() as folder:
        for index in range(16 if tiny else 1024):
            pictures[index % DISTINCT].save(Path(folder) / f"{index:05d}.jpg", quality=90)
        yield open_images(folder)


def decoding(preset: str, tiny: bool) -> dict:
    """Decodes and preprocesses JPEG files, in one thread and in the batches of a pass."""
    with jpeg_files(tiny) as images:
        few = range(min(len(images), 32))
        start = time.perf_counter()
        for index in few:
            picture(images.read(index), PRESETS[preset])
        one = len(few) / (time.perf_counter() - start)
        groups = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
        start = time.perf_counter()
        for _ in photograph_batches(images, groups, BATCH, PRESETS[preset], None):
            pass
        seconds = time.perf_counter() - start
    return {"img_s": len(images) / seconds, "one_thread_img_s": one, "cores": len(os.sched_getaffinity(0))}


def top_images(model: str, dtype: str, tiny: bool) -> dict:
    """`qkjax.top_images` of JPEG files, from the decomposition to the dataset; the second of two calls."""
    checkpoint = checkpoint_of(model, tiny)
    options = qkjax.PassOptions(4 if tiny else None, dtype=dtype)
    with jpeg_files(tiny) as images:
        first, second = (_seconds_of_pass(checkpoint, images, options) for _ in range(2))
        return {"img_s": len(images) / second, "ms": 1e3 * second, "compile_s": first - second}


def _seconds_of_pass(checkpoint, images: ImageSet, options: qkjax.PassOptions) -> float:
    start = time.perf_counter()
    qkjax.top_images(checkpoint, images, options=options)
    return time.perf_counter() - start
