"""What a report of a ViT-B takes: aims, at most 100 MB, and open in a browser in under a second.

    python benchmarks/report.py        # a ViT-B/16 with random weights on the default photographs; minutes on a CPU

144 heads x 64 modes, the nine best images for both signs. Random weights give the maps that are packed worst, as noise
is. The times in the browser (headless Chromium, page on disk, in the page cache) are from the start of loading until
the view stands there, medians; a head's own file is read and unpacked on the way.
"""

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from playwright.sync_api import sync_playwright
from preference import BASE

import qkjax
from qkjax.images.preprocess import PRESETS
from qkjax.report.job import ReportOptions, report
from qkjax.weights.checkpoint import Checkpoint

ROUNDS = 5
VIEWS = {"overview": "", "head": "base/L5H7", "mode": "base/L5H7M3+", "image, all 144 heads": "base/image0"}


def main(images: Path | None = None, seed: int = 0) -> None:
    """Prints seconds and megabytes.

    Args:
      images: a folder; by default the photographs that come with scikit-image and scikit-learn.
      seed: of the weights.
    """
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}")
    params = jax.jit(qkjax.ViT(BASE).init)(jax.random.key(seed), np.zeros((1, 224, 224, 3), np.float32))["params"]
    checkpoint = Checkpoint("base", BASE, jax.tree.map(np.asarray, params), "", PRESETS["bigvision-small-crop"])
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        qkjax.export(checkpoint, Path("base.npz"))
        start = time.perf_counter()
        page = report(("base.npz",), images, Path("report"), ReportOptions(), {})
        sizes = [path.stat().st_size for path in Path("report").rglob("*") if path.is_file()]
        print(f"made in {time.perf_counter() - start:.0f} s: {sum(sizes) / 1e6:.1f} MB in {len(sizes)} files")
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        for view, seconds in opened(page.resolve(), browser).items():
            print(f"{view}: {seconds:.2f} s")


def opened(page: Path, browser: str) -> dict[str, float]:
    """Seconds until each view of a report stands there."""
    found = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for view, address in VIEWS.items():
            taken = []
            for _ in range(ROUNDS):
                tab = chromium.new_page()
                start = time.perf_counter()
                tab.goto(f"file://{page}#{address}")
                tab.locator(".pane h2").wait_for()
                taken.append(time.perf_counter() - start)
                tab.close()
            found[view] = float(np.median(taken))
        chromium.close()
    return found


if __name__ == "__main__":
    tyro.cli(main)
