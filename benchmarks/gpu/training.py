"""Rows of training steps of a ViT-S/16 on ImageNet, and of a plain loop of flax and optax with the same model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

import qkjax
from benchmarks.gpu.timing import seconds_of
from benchmarks.shapes import SIDE, forward_products
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.devices import distribute
from qkjax.train.model import initial, plain
from qkjax.train.presets import PRESETS
from qkjax.train.step import program

CLASSES = 1000
TINY = {"patch": 56, "width": 32, "heads": 2, "depth": 2, "mlp_dim": 32}


def _config(constraint: str, batch: int, tiny: bool) -> TrainConfig:
    parts = 1 if batch <= 512 else 2
    config = replace(PRESETS["imagenet-s16"], constraint=constraint, batch=batch, accumulate=parts, mixup=0.0)
    return replace(config, batch=4, **TINY) if tiny else config


def _batch(config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels, as `qkjax.train.data.training_batches` yields them."""
    return np.zeros((config.batch, SIDE, SIDE, 3), np.uint8), np.zeros(config.batch, np.int32)


def step(constraint: str, batch: int, tiny: bool) -> dict:
    """A step of `qkjax train` on a batch that is on the device."""
    config = _config(constraint, batch, tiny)
    vit = vit_config(config, (SIDE, SIDE, 3), CLASSES)
    made = program(config, vit)
    state = [made.begin(initial(jax.random.key(0), vit, config.constraints(), bias=config.bias))]
    arrays = distribute(_batch(config))

    def run():
        state[0], loss = made.step(state[0], *arrays)
        return state[0], loss

    return _row(config, vit, run, state[0])


def plain_loop(batch: int, tiny: bool) -> dict:
    """A step as written by hand: the same model, optax.adamw, jax.jit with donated arrays."""
    config = _config("free", batch, tiny)
    vit = vit_config(config, (SIDE, SIDE, 3), CLASSES)
    model, names = qkjax.ViT(vit, config.dtype), ("free",) * vit.depth
    params = plain(initial(jax.random.key(0), vit, names, bias=config.bias), vit, names)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(config.learning_rate, b2=config.b2))

    def loss(params, pixels, labels):
        images = pixels.astype(jnp.float32) / 127.5 - 1
        logits = model.apply({"params": params}, images)[0].astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(state, pixels, labels):
        value, slope = jax.value_and_grad(loss)(state[0], pixels, labels)
        updates, optimizer_state = optimizer.update(slope, state[1], state[0])
        return (optax.apply_updates(state[0], updates), optimizer_state), value

    jitted = jax.jit(update, donate_argnums=0)
    params = jax.tree.map(jnp.array, params)
    state, arrays = [(params, optimizer.init(params))], jax.device_put(_batch(config))

    def run():
        state[0], value = jitted(state[0], *arrays)
        return state[0], value

    return _row(config, vit, run, state[0])


def _row(config: TrainConfig, vit: qkjax.ViTConfig, run, state) -> dict:
    """The floor: three times the products of a forward pass; the state is read and written once."""
    size = 2 * sum(x.nbytes for x in jax.tree.leaves(state))
    compile_s, seconds = seconds_of(run, jax.block_until_ready, 5)
    flop = 3 * 2 * config.batch * forward_products(vit)
    rate = config.batch / seconds
    return {"img_s": rate, "ms": 1e3 * seconds, "compile_s": compile_s, "flop": flop, "bytes": size, "unit": "bf16"}
