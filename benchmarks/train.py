"""Steps per second of training, side by side in one run: ours without constraints against a plain flax and optax
loop of the same model, and each constraint against ours without.

    python benchmarks/train.py                        # the study's model; some minutes on two CPU cores
    python benchmarks/train.py --width 384 --depth 12 --heads 6 --mlp-dim 1536 --patch 2 --batch 64

The floor is the multiply-adds of a forward and a backward pass (three times the forward's), for which the
machine's rate is that of a large matrix product in the same run. Batches are made beforehand: what is timed is
the step. Every method's rounds take turns, so that a machine that slows down slows them all; the best of the
rounds counts.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from itertools import islice
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from table import Line
from tyro.conf import arg

import qkjax
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.constraints import CONSTRAINTS, example_name
from qkjax.train.data import training_batches
from qkjax.train.devices import distribute
from qkjax.train.model import count, initial, plain
from qkjax.train.presets import PRESETS
from qkjax.train.step import program
from qkjax.train.tasks import load_task
from qkjax.vit.config import ViTConfig

ROUNDS, STEPS = 5, 20


def ours(config: TrainConfig, vit: ViTConfig, batches: list) -> Callable[[], None]:
    """Runs `STEPS` steps of `qkjax train`."""
    made = program(config, vit)
    held = [made.begin(initial(jax.random.key(0), vit, config.constraints()))]

    def run() -> None:
        for number in range(STEPS):
            held[0], _ = made.step(held[0], *distribute(batches[number % len(batches)]))
        jax.block_until_ready(held[0])

    return run


def plain_loop(config: TrainConfig, vit: ViTConfig, batches: list) -> Callable[[], None]:
    """Runs `STEPS` steps as one would write them by hand: flax's apply, optax's AdamW, jax.jit."""
    model = qkjax.ViT(vit)
    names = ("free",) * vit.depth
    params = plain(initial(jax.random.key(0), vit, names), vit, names)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(rate, b2=config.b2))

    def loss(params, images, labels):
        logits = model.apply({"params": params}, images)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        value, slope = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    held = [params, optimizer.init(params)]

    def run() -> None:
        for number in range(STEPS):
            *held[:], _ = step(*held, *batches[number % len(batches)])
        jax.block_until_ready(held)

    return run


def multiply_adds(vit: ViTConfig, batch: int) -> float:
    """Of one step: three times those of the forward pass."""
    tokens = vit.grid[0] * vit.grid[1]
    per_token = vit.depth * (4 * vit.width**2 + 2 * vit.width * vit.mlp_dim + 2 * tokens * vit.width)
    patch = vit.patch_size[0] * vit.patch_size[1] * vit.channels * vit.width
    return 3.0 * batch * tokens * (per_token + patch)


def machine_rate() -> float:
    """Multiply-adds per second of a large product."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    jax.block_until_ready(product(a))
    start = time.perf_counter()
    for _ in range(3):
        jax.block_until_ready(product(a))
    return 3 * 2048.0**3 / (time.perf_counter() - start)


def main(
    config: Annotated[TrainConfig, arg(name="")] = PRESETS["digits-study"],
    rounds: int = ROUNDS,
    beside: tuple[str, ...] = tuple(map(example_name, CONSTRAINTS)),
) -> list[Line]:
    """Prints the table.

    Args:
      config: the model, the data and the batch.
      rounds: of each method.
      beside: constraints that are timed, `free` in any case.
    """
    config = replace(config, match=False)
    task = load_task(config)
    vit = vit_config(config, task.pixels, task.classes)
    batches = list(islice(training_batches(task, config), 8))
    names = dict.fromkeys(("free", *beside))
    methods = {"plain flax and optax": plain_loop(config, vit, batches)}
    methods |= {name: ours(replace(config, constraint=name), vit, batches) for name in names}
    best = dict.fromkeys(methods, np.inf)
    for number in range(rounds + 1):  # the first one compiles
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start) if number else best[name]
    floor = multiply_adds(vit, config.batch) / machine_rate()
    device = jax.devices()[0].device_kind
    print(f"{date.today()}, {device} ({platform.machine()}), jax {jax.__version__}")
    size = count(initial(jax.random.key(0), vit, ("free",) * vit.depth), ("free",) * vit.depth)
    print(f"depth {vit.depth}, width {vit.width}, {size:,} parameters, batch {config.batch}, "
          f"{vit.grid[0] * vit.grid[1]} tokens; floor {1e3 * floor:.1f} ms a step")  # fmt: skip
    print(f"{'':<22} {'ms/step':>8} {'x floor':>8} {'speed against':>22}")
    for name, seconds in best.items():
        milliseconds = 1e3 * seconds / STEPS
        other = "plain flax and optax" if name == "free" else "free"
        ratio = "" if name == "plain flax and optax" else f"{best[other] / seconds:.2f} of {other}"
        print(f"{name:<22} {milliseconds:8.1f} {milliseconds / (1e3 * floor):8.1f} {ratio:>28}")
    step = best["free"] / STEPS
    peers = {"plain flax and optax": best["plain flax and optax"] / STEPS, "multiply-adds (floor)": floor}
    return [Line("a training step without constraints", step, peer, seconds) for peer, seconds in peers.items()]


if __name__ == "__main__":
    tyro.cli(main)
