"""Rows of the device's limits: rates of matrix products by precision, of copies, and of transfers from the host."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.timing import seconds_of
from benchmarks.shapes import pixels_of

_Preset = jax.lax.DotAlgorithmPreset
PRECISIONS = {
    "bf16": (jnp.bfloat16, None),
    "float32 highest": (jnp.float32, "highest"),
    "float32 default": (jnp.float32, None),
    "TF32x3": (jnp.float32, _Preset.TF32_TF32_F32_X3),
    "BF16x3": (jnp.float32, _Preset.BF16_BF16_F32_X3),
    "BF16x6": (jnp.float32, _Preset.BF16_BF16_F32_X6),
}
"""Number format and precision of the products."""
CHECKED = 64
"""Rows of the product that are compared with float64."""


def product(precision: str, tiny: bool) -> dict:
    """A large square product: its rate, and its relative error against float64."""
    dtype, algorithm = PRECISIONS[precision]
    side = 256 if tiny else 8192
    factor = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
    run = jax.jit(lambda x: jnp.matmul(x, x, precision=algorithm))
    compile_s, seconds = seconds_of(lambda: run(factor), jax.block_until_ready)
    exact = np.asarray(factor.astype(jnp.float32), np.float64)
    exact = exact[:CHECKED] @ exact
    error = np.linalg.norm(np.asarray(run(factor)[:CHECKED], np.float64) - exact) / np.linalg.norm(exact)
    return {"ms": 1e3 * seconds, "tflops": 2 * side**3 / seconds / 1e12, "error": float(error), "compile_s": compile_s}


def copy(tiny: bool) -> dict:
    """Reads and writes an array of 4 GB."""
    values = jnp.zeros((8 if tiny else 1024, 1 << 20))
    run = jax.jit(lambda x: x + 1)
    _, seconds = seconds_of(lambda: run(values), jax.block_until_ready)
    return {"ms": 1e3 * seconds, "gb_s": 2 * values.nbytes / seconds / 1e9}


def transfer(tiny: bool) -> dict:
    """Moves a batch of decoded images to the device."""
    pixels = pixels_of(8 if tiny else 256)
    _, seconds = seconds_of(lambda: jax.device_put(pixels, may_alias=False), jax.block_until_ready)
    return {"ms": 1e3 * seconds, "gb_s": pixels.nbytes / seconds / 1e9}
