"""The precision of float32 matrix products on each platform."""

import jax

TENSOR_CORES_WITH_TF32 = 8.0
"""Compute capability of the first NVIDIA GPUs with tensor cores for TF32 (Ampere)."""


def full_precision() -> jax.lax.Precision | jax.lax.DotAlgorithmPreset:
    """The fastest precision on the default device at which products are as accurate as in float32.

    - NVIDIA GPU since Ampere: three TF32 products (`TF32_TF32_F32_X3`) on tensor cores. Each factor is the sum of two
      TF32 numbers; only the product of the two smaller parts is dropped.
    - Otherwise: `HIGHEST`, which is float32 on CPUs and GPUs, and six bfloat16 products on TPUs.

    docs/accelerators.md compares these products, and faster products that are less accurate, with float64. The result
    is a precision of `jax.lax.dot_general` and `jnp.einsum`; convolutions do not accept a `DotAlgorithmPreset`.
    """
    device = jax.devices()[0]
    if "NVIDIA" in device.device_kind and float(device.compute_capability) >= TENSOR_CORES_WITH_TF32:
        return jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return jax.lax.Precision.HIGHEST
