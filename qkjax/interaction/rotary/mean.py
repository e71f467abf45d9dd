"""Mbar, the mean of M(delta) over all pairs of positions, as a pair of kernels; and M(delta) of a single offset.

If i and j are drawn independently and uniformly from all positions, the mean of R(p_i) R(p_j)^T is Rbar Rbar^T, where
Rbar is the mean of R(p). In plane a, Rbar is the complex number mu_a = mean_p exp(i theta_a(p)), so

    Mbar = E M(delta) = Wq diag(c) Wk^T = (Wq diag(sqrt c)) (Wk diag(sqrt c))^T,   c_a = |mu_a|^2

with c_a on both columns of plane a. The two factors have the shape of kernels: `decompose` and all measures of modes
apply to them without any change. Mbar is the expected interaction of two contents, wherever they are. High frequencies
have c near 0 and carry positions, and low frequencies have c near 1 and carry content (Barbero et al. 2024, arXiv
2410.06205, observe this in language models).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.interaction.rotary.rotation import Angles, Pairs, cosine_and_sine, on_columns, rotate

LEAST = 1e-8
"""Planes whose c is smaller than this count as purely positional: their c is set to 0. They would change Mbar by less
than the rounding error of float32."""

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]
ByPlane = Float[Array | np.ndarray, "*heads planes"]


def mean_rotation(angles: Angles) -> tuple[ByPlane, ByPlane]:
    """The real and the imaginary part of mu_a = mean_p exp(i theta_a(p)); 0 in planes that are purely positional."""
    real, imaginary = (part.mean(-2) for part in cosine_and_sine(angles))
    reachable = real**2 + imaginary**2 >= LEAST
    return real * reachable, imaginary * reachable


def coherence(angles: Angles) -> ByPlane:
    """c_a = |mean_p exp(i theta_a(p))|^2 of each plane: 1 if no position rotates the plane, 0 if the rotations cancel.

    Example:
      >>> import numpy as np
      >>> coherence(np.outer(np.arange(8), [0.0, 0.1, 2 * np.pi / 8])).round(2).tolist()
      [1.0, 0.95, 0.0]
    """
    real, imaginary = mean_rotation(angles)
    return real**2 + imaginary**2


def across_embed(x: Float[Array | np.ndarray, "*heads columns"]):
    """Inserts the axes that align values of (layers, heads) or of all heads with (layers, embed, heads, columns)."""
    return x[:, None] if x.ndim == 3 else x[None, None, None]


def columns_with_mean(angles: Angles, pairs: Pairs = "half") -> Int[np.ndarray, "columns"]:
    """The columns of a head in planes with c > 0, or all columns if c is 0 in all planes.

    The other columns of `mean_kernels` are 0. Their modes would have no strength, and arbitrary directions. If the
    heads rotate by different angles, these are the columns in planes with c > 0 in any head.

    Example:
      >>> columns_with_mean(np.outer(np.arange(8), [0.0, 0.1, 2 * np.pi / 8])).tolist()
      [0, 1, 3, 4]
    """
    c = np.asarray(coherence(angles))
    used = on_columns(c.reshape(-1, c.shape[-1]).max(0), pairs) > 0
    return np.flatnonzero(used) if used.any() else np.arange(len(used))


def mean_kernels(query: Kernel, key: Kernel, angles: Angles, pairs: Pairs = "half") -> tuple[Kernel, Kernel]:
    """Kernels Wq diag(sqrt c) and Wk diag(sqrt c), whose interaction is Mbar.

    If all angles are 0, the kernels are unchanged, bit for bit.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.modes import decompose
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4)).astype(np.float32)
      >>> decompose(*mean_kernels(query, key, np.outer(np.arange(5), [1.0, 0.1])))
      Modes(1 layers x 3 heads x 4 modes, embed 12, frame plain)
    """
    c = coherence(angles)
    module = jnp if isinstance(c, jax.Array) else np
    root = module.where(c > 0, module.sqrt(module.where(c > 0, c, 1)), 0)  # with a derivative of 0 at 0
    scale = across_embed(on_columns(root, pairs))
    query, key = (
        kernel.astype(dtype) * scale.astype(dtype)
        for kernel, dtype in ((x, jnp.promote_types(x.dtype, jnp.float32)) for x in (query, key))
    )
    return query, key


def offset_kernels(
    query: Kernel, key: Kernel, angles: Float[Array | np.ndarray, "*heads planes"], pairs: Pairs = "half"
) -> tuple[Kernel, Kernel]:
    """Kernels Wq R(delta) and Wk, whose interaction is M(delta) for the angles of one offset.

    For tokens that are not rotated, such as class tokens, M = Wq Wk^T is the interaction of the kernels themselves. For
    a query that is not rotated and a key at position p, pass the angles -theta(p).

    Example:
      >>> import numpy as np
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> offset_kernels(query, key, np.array([1.0, 0.1]))[0].shape
      (1, 12, 3, 4)
    """
    return rotate(query, across_embed(angles), pairs), key
