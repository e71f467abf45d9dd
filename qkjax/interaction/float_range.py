"""Heads that are so small or so large that their singular values leave float32.

Weight decay can all but empty a head, and divergence blow one up. Powers of two are taken out of such heads before they
are decomposed, which is exact, and their singular values are float64.
"""

import numpy as np
from jaxtyping import Array, Float, Int

SMALL, LARGE = 2.0**-80, 2.0**80
"""Largest singular values between which all others that matter, and their sums and squares, are normal numbers."""

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]


def split_powers(
    s: Float[np.ndarray, "layers heads rank"], query: Kernel, key: Kernel
) -> tuple[Kernel, Kernel, Int[np.ndarray, "layers heads 1"]] | None:
    """Both kernels without powers of two, and the powers that were taken out of each head.

    Args:
      s: singular values as computed from the kernels.

    Returns:
      None if float32 holds the singular values.
    """
    largest = s.astype(np.float64).max(-1)
    suspects = ~((largest > SMALL) & (largest < LARGE))
    kernels = [np.asarray(kernel) for kernel in (query, key)] if suspects.any() else []
    powers = [_exponents(kernel, suspects) for kernel in kernels]
    if not any(power.any() for power in powers):
        return None
    scaled = (
        np.ldexp(kernel.astype(np.float64), -power[:, None, :, None]).astype(np.float32)
        for kernel, power in zip(kernels, powers, strict=True)
    )
    return *scaled, sum(powers)[..., None]


def _exponents(kernel: np.ndarray, heads: np.ndarray) -> Int[np.ndarray, "layers heads"]:
    """The power of two of the largest entry of each kernel of `heads`; 0 elsewhere, and for kernels of 0 or NaN."""
    result = np.zeros(heads.shape, int)
    for layer, head in zip(*np.nonzero(heads), strict=True):
        largest = np.abs(kernel[layer, :, head].astype(np.float64)).max()
        result[layer, head] = np.frexp(largest)[1] if np.isfinite(largest) else 0
    return result


def relative(
    s: Float[np.ndarray, "layers heads rank"],
) -> tuple[Float[np.ndarray, "layers heads rank"], Int[np.ndarray, "layers heads 1"]]:
    """Float64 singular values as float32 ones times powers of two, head by head."""
    powers = np.frexp(s.max(-1, keepdims=True))[1]
    return np.ldexp(s, -powers).astype(np.float32), powers
