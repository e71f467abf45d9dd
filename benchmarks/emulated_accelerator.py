"""A pytest plugin that runs the tests on a CPU with an accelerator's arithmetic and an accelerator's choices.

    PYTHONPATH=.:benchmarks pytest -p emulated_accelerator --emulate gpu -n 2 tests       # TF32, as on an H100
    PYTHONPATH=.:benchmarks pytest -p emulated_accelerator --emulate tpu -n 2 tests       # bfloat16, as on a TPU

By default, GPUs round the factors of a float32 product to TF32 (10 bits of the fraction), and TPUs to bfloat16 (7
bits). The plugin rounds the factors of all float32 products and convolutions of default precision in the same way, and
`jax.default_backend` returns "gpu" or "tpu", so that qkjax chooses the methods that it uses on accelerators. Tests that
fail here will fail on the device; tests that pass here may still fail there, for reasons other than rounding.

Donated buffers cannot be emulated: a CPU does not delete all of them.
"""

import os

BITS = {"gpu": 10, "tpu": 7}
"""Bits of the fraction that the factors of a product keep."""
VARIABLE = "QKJAX_EMULATE"
"""Environment variable by which the emulation reaches the workers of pytest-xdist."""


def pytest_addoption(parser):
    parser.addoption("--emulate", choices=sorted(BITS), default=os.environ.get(VARIABLE, "gpu"))


def pytest_configure(config):
    platform = os.environ[VARIABLE] = config.getoption("--emulate")
    # Programs compiled with rounding must not meet those compiled without it in a persistent cache.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    jax.default_backend = lambda: platform
    round_products(BITS[platform])
    check_rounding()


def round_products(bits: int) -> None:
    """Replaces the CPU's lowering of products and convolutions by one that rounds float32 factors first."""
    import jax
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lax.convolution import conv_general_dilated_p
    from jax._src.lax.lax import dot_general_p
    from jax._src.lib.mlir import ir
    from jax._src.lib.mlir.dialects import hlo

    def by_default(precision) -> bool:
        both = precision if isinstance(precision, tuple) else (precision, precision)
        return all(p is None or p == jax.lax.Precision.DEFAULT for p in both)

    def rounded(value):
        i32 = ir.IntegerType.get_signless(32)
        return hlo.reduce_precision(value, ir.IntegerAttr.get(i32, 8), ir.IntegerAttr.get(i32, bits))

    for primitive in (dot_general_p, conv_general_dilated_p):
        on_cpu, anywhere = mlir._platform_specific_lowerings["cpu"], mlir._lowerings
        before = on_cpu.get(primitive) or anywhere[primitive]
        before = getattr(before, "rule", before)

        def rule(context, left, right, *rest, before=before, **params):
            float32 = all(aval.dtype == np.float32 for aval in context.avals_in[:2])
            if float32 and by_default(params.get("precision")):
                left, right = rounded(left), rounded(right)
            return before(context, left, right, *rest, **params)

        mlir.register_lowering(primitive, rule, platform="cpu")


def check_rounding() -> None:
    """Raises unless products of default precision are rounded, and products of the highest precision are not."""
    import jax.numpy as jnp
    import numpy as np

    factor = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    exact = factor.astype(np.float64) @ factor
    default, highest = (np.asarray(jnp.matmul(factor, factor, precision=p)) for p in (None, "highest"))
    errors = [np.abs(product - exact).max() for product in (default, highest)]
    if errors[0] < 20 * errors[1]:
        raise RuntimeError(
            f"a product of default precision is off by {errors[0]:.1e} and of the highest by {errors[1]:.1e}: expected "
            "rounded factors, adapt `round_products` to this version of jax"
        )
