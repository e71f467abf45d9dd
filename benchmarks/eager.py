"""The forward pass of a scan and a training step against torch's eager mode, in pairs, in one process.

    python benchmarks/eager.py                # DINOv2 ViT-S/14 and ViT-Ti/16 at 224 pixels, batch 8; two minutes

torch runs timm's models of the same shapes. Both have random weights, since speed does not depend on them. In each
round, qkjax and torch run one after the other, so that other work on the machine slows both. The printed ratio is the
median of the ratios of the rounds. A training step is a step of `qkjax train` without constraints; torch's step is
AdamW with clipped gradients.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from shapes import SIDE, config_of, params_of, pixels_of
from table import Line

import qkjax
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.devices import distribute
from qkjax.train.model import initial
from qkjax.train.step import program

CLASSES = 1000
TRAINED = TrainConfig(
    patch=16, width=192, depth=12, heads=3, mlp_dim=768, bias=True, batch=8, clip=1.0, dtype="float32", average=0.0,
    mixup=0.0, label_smoothing=0.0, data="tfds:imagenet2012", resolution=SIDE,
)  # fmt: skip


def forward_pass(batch: int) -> Callable[[], None]:
    """qkjax's forward pass of ViT-S/14 over pixels in uint8, as in a scan."""
    config = config_of("S")
    model, params, pixels = qkjax.ViT(config), params_of(config), pixels_of(batch)
    run = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels.astype(jnp.float32) / 255)[0])
    return lambda: jax.block_until_ready(run(params, pixels))


def torch_forward_pass(batch: int) -> Callable[[], None]:
    """timm's forward pass over normalised pixels."""
    import timm
    import torch

    model = timm.create_model("vit_small_patch14_dinov2", img_size=SIDE, num_classes=0).eval()
    images = torch.randn(batch, 3, SIDE, SIDE)

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def training_step(batch: int) -> Callable[[], None]:
    """A step of `qkjax train` of a ViT-Ti/16."""
    config = replace(TRAINED, batch=batch)
    vit = vit_config(config, (SIDE, SIDE, 3), CLASSES)
    made = program(config, vit)
    state = [made.begin(initial(jax.random.key(0), vit, config.constraints(), bias=config.bias))]
    batches = distribute((pixels_of(batch), np.arange(batch, dtype=np.int32)))

    def run() -> None:
        state[0], _ = made.step(state[0], *batches)
        jax.block_until_ready(state[0])

    return run


def torch_training_step(batch: int) -> Callable[[], None]:
    """A step of timm's ViT-Ti/16 with torch's AdamW."""
    import timm
    import torch

    model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = torch.randn(batch, 3, SIDE, SIDE), torch.arange(batch)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def pairs(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both in each round, after two calls that compile and warm up."""
    seconds = []
    for number in range(rounds + 2):
        pair = []
        for run in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        if number >= 2:
            seconds.append(tuple(pair if number % 2 else pair[::-1]))
    return seconds


def main(batch: int = 8, rounds: int = 20) -> list[Line]:
    """Prints images per second and ratios.

    Args:
      batch: images in a batch.
      rounds: number of pairs.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    lines = []
    for name, ours, theirs in (
        ("forward pass of ViT-S/14", forward_pass, torch_forward_pass),
        ("training step of ViT-Ti/16", training_step, torch_training_step),
    ):
        seconds = np.array(pairs(ours(batch), theirs(batch), rounds))
        ratios = np.sort(seconds[:, 1] / seconds[:, 0])
        middle = np.median(seconds, axis=0)
        print(
            f"{name}, batch {batch}: qkjax {batch / middle[0]:.1f}, torch {batch / middle[1]:.1f} images/s; "
            f"{np.median(ratios):.2f} times as fast as torch (middle half of {rounds} pairs: "
            f"{ratios[rounds // 4]:.2f} to {ratios[-1 - rounds // 4]:.2f}), load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        lines.append(Line(f"{name}, batch {batch}", middle[0], f"torch {torch.__version__}, eager", middle[1]))
    return lines


if __name__ == "__main__":
    tyro.cli(main)
