"""CPU time to prepare a photograph: reading the JPEG file, resizing and cropping, for each kind of preprocessing.

    python benchmarks/images.py

The photographs of scikit-image and scikit-learn, saved as JPEG (quality 90, 4:2:0) at 500 x 375 pixels, the most
frequent size in ImageNet, and at random sizes from 300 to 700 pixels, as different sizes need different weights. CPU
time of one thread, so that other programs on the machine disturb the measurement less; medians over all photographs.
"""

import io
import time

import numpy as np

from qkjax.images.default_set import photographs
from qkjax.images.preprocess import PRESETS, open_image, picture
from qkjax.images.resize import _split

MEASURED = ("bigvision-small-crop", "squash", "hf-vit", "hf-clip", "hf-siglip", "hf-dinov2")
ROUNDS = 5


def jpegs(sizes: list[tuple[int, int]]) -> list[bytes]:
    """The photographs at these sizes (width, height), one after the other."""
    images, files = photographs(crops=False), []
    for number, size in enumerate(sizes):
        data = io.BytesIO()
        images.read(number % len(images)).resize(size).save(data, "JPEG", quality=90)
        files.append(data.getvalue())
    return files


def milliseconds(files: list[bytes], preset: str) -> tuple[float, float]:
    """Medians of the milliseconds for reading a file, and for resizing and cropping; no weights are known at first."""
    reading, resizing = [], []
    for _ in range(ROUNDS):
        _split.cache_clear()
        for file in files:
            start = time.thread_time()
            image = open_image(io.BytesIO(file), "x")
            opened = time.thread_time()
            picture(image, PRESETS[preset], 224)
            reading.append(opened - start)
            resizing.append(time.thread_time() - opened)
    return 1e3 * float(np.median(reading)), 1e3 * float(np.median(resizing))


def main() -> None:
    rng = np.random.default_rng(0)
    random = [tuple(map(int, rng.integers(300, 700, 2))) for _ in range(60)]
    sets = {"500 x 375": [(500, 375)] * 30, "random sizes": random}
    print("| preset | sizes | read, ms | resize, ms | images/s on a core |\n|---|---|---|---|---|")
    for name, sizes in sets.items():
        files = jpegs(sizes)
        for preset in MEASURED:
            read, resize = milliseconds(files, preset)
            print(f"| {preset} | {name} | {read:.2f} | {resize:.2f} | {1e3 / (read + resize):.0f} |")


if __name__ == "__main__":
    main()
