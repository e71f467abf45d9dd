"""Images per second of the scan for the images that modes like best, side by side with other ways, in one run.

    python benchmarks/scan.py              # DINOv2 ViT-S/14 at 224 pixels; some minutes on a CPU
    python benchmarks/scan.py --images 512 --batch 64

The floor is the bare forward pass on the same batches, already decoded: a scan must run it. On top of
it come the projections, whose share of multiply-adds is printed, scores, top-k, and decoding in
threads. The authors' way, in torch: one image at a time, a forward pass for each of the two signs, and
for each layer and head a product for each of the eight maps that go into its scores. It needs the
parity extra, and runs on random weights of the same shapes (speed does not depend on them).

A call has costs that do not depend on the number of images: modes, their measures, and the hash of the parameters.
The script prints them; they are part of the time of the scan of JPEG files.

Memory is the peak resident size of fresh processes that scan more and more images with a small model.
"""

import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from decompose import _status
from PIL import Image
from table import Line

import qkjax
from qkjax.activations.top_maps import empty
from qkjax.analyses.top_images.compute import MAPPED, scan_step
from qkjax.images.default_set import photographs
from qkjax.images.prefetch import photograph_batches
from qkjax.images.preprocess import PRESETS
from qkjax.images.sets import Batch, ImageSet
from qkjax.images.sources import open_images
from qkjax.passes.options import batch_size
from qkjax.weights.checkpoint import Checkpoint

MODEL = "dinov2-vits14-focus"
JPEG = "scan of JPEG files, decoding included"
ROUNDS = 3
TINY = qkjax.ViTConfig(
    width=64, depth=4, heads=4, head_dim=16, mlp_dim=128, patch_size=(8, 8), grid=(4, 4), pool="tok", class_token=True
)


def save_photographs(folder: Path, count: int) -> ImageSet:
    """JPEG files of about the size of ImageNet's, 500 x 375 pixels."""
    source = photographs()
    for index in range(count):
        image = source.read(index % len(source)).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05d}.jpg", quality=90)
    return open_images(folder)


def forward_seconds(checkpoint: Checkpoint, made: list[np.ndarray], clock: Callable = time.perf_counter) -> float:
    """Seconds of the forward pass alone over batches of pixels, after one that compiles."""
    model, params = qkjax.ViT(checkpoint.config), jax.device_put(checkpoint.params)
    step = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels.astype(jnp.float32) / 255)[0])
    jax.block_until_ready(step(params, made[0]))
    start = clock()
    for pixels in made:
        jax.block_until_ready(step(params, pixels))
    return clock() - start


def step_seconds(step: Callable, top, made: list[np.ndarray]) -> float:
    """Seconds of the scan's steps alone over the same batches."""
    index = np.arange(len(made[0]), dtype=np.int32)
    top, _ = step(jax.tree.map(jnp.copy, top), Batch(made[0], None, index, ()))  # it uses up its own
    jax.block_until_ready(top)
    start = time.perf_counter()
    for pixels in made:
        top, _ = step(top, Batch(pixels, None, index, ()))
    jax.block_until_ready(top)  # a step only starts the computation
    return time.perf_counter() - start


def scan_seconds(checkpoint: Checkpoint, saved: ImageSet, options: qkjax.PassOptions, path: Path) -> float:
    """Seconds of a whole scan of files; its program is compiled before (by `step_seconds`)."""
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    qkjax.top_images(checkpoint, saved, options=options, partial=path)
    return time.perf_counter() - start


def torch_seconds(checkpoint: Checkpoint, modes: qkjax.Modes, images: int) -> float:
    """Seconds of the authors' way for `images` decoded images."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    c, size = checkpoint.config, checkpoint.preprocess.crop
    shapes = {"hidden_size": c.width, "num_hidden_layers": c.depth, "num_attention_heads": c.heads}
    model = Dinov2Model(Dinov2Config(**shapes, image_size=size, patch_size=c.patch_size[0])).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    pixels = torch.randn(images, 1, 3, size, size)
    directions = torch.stack([torch.from_numpy(np.array(x)).to(device) for x in (modes.u, modes.v)])

    def one(image: torch.Tensor, directions: torch.Tensor) -> None:
        states = model(image.to(device), output_hidden_states=True).hidden_states
        for layer in range(c.depth):
            for head in range(c.heads):
                # A product for each score of each side, as there, although four of them are equal.
                maps = [(states[layer] @ d[layer, head])[:, 1:] for _ in range(4) for d in directions]
                found = [m.mean(1)[0] for m in maps[:2]] + [m.max(1)[0][0] for m in maps[2:4]]
                found += [m.topk(5, dim=1)[0].mean(1)[0] for m in maps[4:6]]
                found += [maps[6].max(1)[0][0].cpu().numpy() * maps[7].max(1)[0][0].cpu().numpy()]
                [value.cpu().numpy() for value in found[:-1]]

    with torch.no_grad():
        one(pixels[0], directions)
        start = time.perf_counter()
        for signed in (directions, -directions):
            for image in pixels:
                one(image, signed)
        return time.perf_counter() - start


def peak_memory(count: int) -> float:
    """Peak resident size in MB of a fresh process that scans `count` synthetic images."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (count,))


def _peak_memory(count: int) -> float:
    params = qkjax.ViT(TINY).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    checkpoint = Checkpoint("tiny", TINY, jax.tree.map(np.asarray, params), "", PRESETS["squash"])

    def draw(index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (96, 128, 3), dtype=np.uint8))

    images = ImageSet("synthetic", tuple(f"{i:06d}" for i in range(count)), draw, str(count))
    with tempfile.TemporaryDirectory() as folder:
        options = qkjax.PassOptions(resolution=(32, 32))
        qkjax.top_images(checkpoint, images, options=options, partial=Path(folder) / "partial.npz")
    return _status("VmHWM") / 1e6


def main(images: int | None = None, batch: int | None = None) -> list[Line]:
    """Prints images per second, ratios, and memory.

    Args:
      images: to scan; None for 240 on a CPU, about as many as the default photographs, and 1024 elsewhere.
      batch: images at once; None for what the scan takes.
    """
    device = jax.devices()[0]
    images = images or (240 if device.platform == "cpu" else 1024)
    print(f"{device.device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}")
    checkpoint = qkjax.load(MODEL)
    modes = qkjax.decompose(checkpoint)
    options, rounded = qkjax.PassOptions(batch), qkjax.PassOptions(batch, dtype="bfloat16")
    size, c = batch_size(options.batch), checkpoint.config
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "images").mkdir()
        saved = save_photographs(Path(name) / "images", images - images % size)
        groups = [range(i, i + size) for i in range(0, len(saved), size)]
        made = [b.pixels for b in photograph_batches(saved, groups, size, checkpoint.preprocess, None)]
        step = scan_step(checkpoint, modes, "norm", ("product",), options)
        top = empty((1, c.depth, c.heads, c.head_dim), 9, MAPPED, (checkpoint.preprocess.crop // c.patch_size[0]) ** 2)
        ways = {
            "bare forward pass, decoded batches": lambda: forward_seconds(checkpoint, made),
            "scan, decoded batches": lambda: step_seconds(step, top, made),
            JPEG: lambda: scan_seconds(checkpoint, saved, options, Path(name) / "partial.npz"),
        }
        if device.platform != "cpu":  # which makes float32 of bfloat16
            less = scan_step(checkpoint, modes, "norm", ("product",), rounded)
            ways["scan in bfloat16, decoded batches"] = lambda: step_seconds(less, top, made)
            ways[f"{JPEG}, bfloat16"] = lambda: scan_seconds(checkpoint, saved, rounded, Path(name) / "partial.npz")
        one_batch, _ = saved.spread(size)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        constant = []
        for _ in range(ROUNDS):  # in turns, so that a machine that slows down slows all
            for way, seconds in ways.items():
                rates[way].append(len(saved) / seconds())
            first = scan_seconds(checkpoint, one_batch, options, Path(name) / "partial.npz")
            constant.append(first - size * (len(saved) / rates[JPEG][-1] - first) / (len(saved) - size))
            try:
                few = min(len(saved), 8 * (1 if device.platform == "cpu" else 8))
                rates.setdefault("the authors' way, torch", []).append(few / torch_seconds(checkpoint, modes, few))
            except (ImportError, RuntimeError) as error:  # beside jax torch may find another cuDNN than its own
                print(f"torch and transformers (parity extra) do not run here, and are left out: {error}")
    tokens = (checkpoint.preprocess.crop // c.patch_size[0]) ** 2 + c.prefix_tokens
    products = c.depth * tokens * (4 * c.width**2 + 2 * c.width * c.mlp_dim + 2 * tokens * c.width)
    projections = 2 * c.depth * (tokens - c.prefix_tokens) * c.width * c.heads * c.head_dim
    print(f"{MODEL}: {products / 1e9:.2f} G multiply-adds forward, projections {projections / products:.0%} of that")
    print(f"{len(saved)} images, batch {size}, medians of {ROUNDS}\n| way | images/s | times forward |\n|---|---|---|")
    middle = {way: float(np.median(values)) for way, values in rates.items() if values}
    floor = middle["bare forward pass, decoded batches"]
    for way, rate in middle.items():
        print(f"| {way} | {rate:.2f} | {rate / floor:.2f} |")
    print(f"a call of top_images without its batches: {np.median(constant):.2f} s")
    if theirs := middle.get("the authors' way, torch"):
        print(f"scan of decoded batches over the authors' way: {middle['scan, decoded batches'] / theirs:.2f}")
    if platform.system() == "Linux" and device.platform == "cpu":
        found = {count: peak_memory(count) for count in (100, 1000, 10_000)}
        print("peak memory, small model: " + ", ".join(f"{n} images {mb:.0f} MB" for n, mb in found.items()))
    ours = middle[JPEG]
    return [Line("scan of an image", 1 / ours, way, 1 / rate) for way, rate in middle.items() if rate is not ours]


if __name__ == "__main__":
    tyro.cli(main)
