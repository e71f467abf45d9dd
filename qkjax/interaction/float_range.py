"""Rescales heads whose kernels are so small or so large that the singular values leave the range of float32.

Weight decay can shrink the kernels of a head almost to zero, and divergence can make kernels very large. The kernels of
such a head are divided by powers of two before the decomposition. This division is exact. The head's singular values
are then float64.
"""

import numpy as np
from jaxtyping import Array, Float, Int

SMALL, LARGE = 2.0**-80, 2.0**80
"""Range for the largest singular value of a head. Within this range, all singular values that matter, their sums and
their squares are normal float32 numbers."""

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]


def split_powers(
    s: Float[np.ndarray, "layers heads rank"], query: Kernel, key: Kernel
) -> tuple[Kernel, Kernel, Int[np.ndarray, "layers heads 1"]] | None:
    """Divides kernels whose singular values are out of range by powers of two; returns the kernels and the exponents.

    Args:
      s: singular values as computed from the kernels.

    Returns:
      The query kernel, the key kernel, and, for each head, the sum of the exponents of both kernels. The function
      returns None if all singular values are in range.
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
    """The binary exponent of the largest entry in the kernel of each head in `heads`.

    The exponent is 0 for heads that are not in `heads`, and for kernels that are zero or not finite.
    """
    result = np.zeros(heads.shape, int)
    for layer, head in zip(*np.nonzero(heads), strict=True):
        largest = np.abs(kernel[layer, :, head].astype(np.float64)).max()
        result[layer, head] = np.frexp(largest)[1] if np.isfinite(largest) else 0
    return result


def relative(
    s: Float[np.ndarray, "layers heads rank"],
) -> tuple[Float[np.ndarray, "layers heads rank"], Int[np.ndarray, "layers heads 1"]]:
    """Splits float64 singular values into float32 values and a power of two for each head."""
    powers = np.frexp(s.max(-1, keepdims=True))[1]
    return np.ldexp(s, -powers).astype(np.float32), powers
