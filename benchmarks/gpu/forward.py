"""Rows of passes over images: the scan for top images, the bare forward pass, and captured intermediates."""

import jax
import jax.numpy as jnp
import numpy as np

import qkjax
from benchmarks.gpu.timing import IN_A_ROW, seconds_of
from benchmarks.shapes import (
    SIDE,
    checkpoint_of,
    config_of,
    forward_products,
    params_of,
    pixels_of,
    projection_products,
    shape_of,
)
from qkjax.activations.project import project
from qkjax.activations.top_maps import empty
from qkjax.analyses.top_images.compute import MAPPED, scan_step
from qkjax.images.sets import Batch

TOP = 9
TINY_BATCH = 4
UNITS = {"bfloat16": "bf16", "float32": "float32 highest"}
"""The ceiling of the matrix products of a forward pass, by its number format."""


def _modes(model: str, tiny: bool) -> qkjax.Modes:
    """Random directions; the time of a scan does not depend on them."""
    layers, embed, heads, rank, _ = shape_of(model, tiny)
    rng = np.random.default_rng(0)
    u, v = (jnp.asarray(rng.standard_normal((layers, heads, embed, rank), dtype=np.float32)) for _ in range(2))
    return qkjax.Modes(u, jnp.ones((layers, heads, rank)), v)


def bare(model: str, dtype: str, batch: int, tiny: bool) -> dict:
    """The forward pass alone, on pixels that are on the device."""
    batch = TINY_BATCH if tiny else batch
    config = config_of(model, tiny)
    vit, params, pixels = qkjax.ViT(config, dtype), params_of(config), jnp.asarray(pixels_of(batch))
    run = jax.jit(lambda p, x: vit.apply({"params": p}, x.astype(jnp.float32) / 255)[0])
    compile_s, seconds = seconds_of(lambda: run(params, pixels), jax.block_until_ready, in_a_row=IN_A_ROW)
    return {
        "img_s": batch / seconds,
        "ms": 1e3 * seconds,
        "compile_s": compile_s,
        "flop": 2 * batch * forward_products(config),
        "bytes": sum(x.nbytes for x in jax.tree.leaves(params)) + pixels.nbytes,
        "unit": UNITS[dtype],
    }


def scan(model: str, dtype: str, batch: int, tiny: bool) -> dict:
    """Steps of the scan for top images: the pixels are on the device ("ms"), or on the host ("ms_from_host").

    The floor counts the projections at the rate of the forward pass.
    """
    batch = TINY_BATCH if tiny else batch
    checkpoint = checkpoint_of(model, tiny)
    layers, _, heads, rank, patch = shape_of(model, tiny)
    options = qkjax.PassOptions(batch, dtype=dtype)
    step = scan_step(checkpoint, _modes(model, tiny), "norm", ("product",), options)
    state = [empty((1, layers, heads, rank), TOP, MAPPED, (SIDE // patch) ** 2)]
    host, index = pixels_of(batch), np.arange(batch, dtype=np.int32)

    def run(pixels):
        state[0], _ = step(state[0], Batch(pixels, None, index, ()))
        return state[0]

    on_device = jax.block_until_ready(jnp.asarray(host))
    compile_s, seconds = seconds_of(lambda: run(on_device), jax.block_until_ready, in_a_row=IN_A_ROW)
    _, from_host = seconds_of(lambda: run(host), jax.block_until_ready, in_a_row=IN_A_ROW)
    config = checkpoint.config
    return {
        "img_s": batch / seconds,
        "ms": 1e3 * seconds,
        "ms_from_host": 1e3 * from_host,
        "compile_s": compile_s,
        "flop": 2 * batch * (forward_products(config) + projection_products(config)),
        "bytes": sum(x.nbytes for x in jax.tree.leaves((checkpoint.params, state))) + host.nbytes,
        "unit": UNITS[dtype],
    }


def projection(model: str, batch: int, tiny: bool) -> dict:
    """The projections of the tokens of all layers onto all directions, with the maximum of every map."""
    batch = TINY_BATCH if tiny else batch
    layers, embed, _, _, patch = shape_of(model, tiny)
    modes = _modes(model, tiny)
    tokens = jnp.ones((batch, (SIDE // patch) ** 2, embed))

    @jax.jit
    def run(tokens, modes):
        return jax.lax.map(lambda uv: project(tokens, *uv).max(1), (modes.u, modes.v))

    compile_s, seconds = seconds_of(lambda: run(tokens, modes), jax.block_until_ready)
    flop = 2 * batch * projection_products(config_of(model, tiny))
    size = layers * tokens.nbytes + modes.u.nbytes + modes.v.nbytes
    return {"ms": 1e3 * seconds, "compile_s": compile_s, "flop": flop, "bytes": size, "unit": "float32 highest"}


def capture(model: str, names: tuple[str, ...], tiny: bool) -> dict:
    """`qkjax.forward` of 64 images in float32 with captured intermediates of all layers."""
    batch = TINY_BATCH if tiny else 64
    checkpoint = checkpoint_of(model, tiny)
    params = jax.device_put(checkpoint.params)
    images = jnp.zeros((batch, SIDE, SIDE, 3))
    vit = qkjax.ViT(checkpoint.config)
    run = jax.jit(lambda p, x: _captured(vit, p, x, names))
    compile_s, seconds = seconds_of(lambda: run(params, images), jax.block_until_ready, 5)
    outputs = jax.eval_shape(run, params, images)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, outputs)))
    flop = 2 * batch * forward_products(checkpoint.config)
    unit = UNITS["float32"]
    return {"ms": 1e3 * seconds, "compile_s": compile_s, "flop": flop, "bytes": size, "unit": unit}


def _captured(vit, params, images, names):
    from qkjax.vit.model import forward

    return forward(vit, params, images, names)
