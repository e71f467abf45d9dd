"""Computes measures of the modes for each mode and each head."""

import html
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.interaction import float_range
from qkjax.interaction.frame import Positions
from qkjax.interaction.head_null import DEFAULT, HeadNull
from qkjax.interaction.modes import Modes
from qkjax.interaction.null import Null, null_band
from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.lapack import by_lapack, cpu_device, one_blas_thread

NEAR = 1e-4
"""If the relative distance of two singular values is smaller than this, float32 cannot separate their singular vectors.
A rounding error of 6e-8 rotates the vectors of such a pair by about 6e-8 / 1e-4, which changes a cosine by up to 1e-3.
If Wq and Wk nearly cancel in M, the change is larger by a factor of ||Wq|| ||Wk|| / ||M||."""


class Metrics(NamedTuple):
    """Measures of the modes of all heads. If a head's M is zero, the cosines and ratios that are undefined are NaN.

    Attributes:
      singular_value: s_n, the strength of the mode.
      cosine: u_n . v_n, in [-1, 1]. A mode with a cosine near 1 attends to tokens similar to the query (grouping). A
        mode with a cosine at 0 or below attends to tokens that differ from the query (context).
      gap: distance from s_n to the nearest other singular value, divided by the largest singular value of the head. For
        the smallest singular value, 0 also counts as a neighbour.
      degenerate: whether the gap is below `NEAR`. For degenerate modes, u_n, v_n and their cosine are not uniquely
        defined.
      cumulative_strength: sum of s over the modes up to and including this mode, divided by the sum over all modes.
      mean_cosine: unweighted mean cosine over all modes of a head, including degenerate modes, as in the authors' code.
      weighted_cosine: sum_n (s_n / sum s) cos_n = tr(M) / ||M||_nuclear (the paper, figure 3).
      effective_rank: exp(entropy of s / sum s) (Roy and Vetterli 2007).
      stable_rank: ||M||_F^2 / ||M||_2^2.
      symmetric_share: ||(M + M^T) / 2||_F^2 / ||M||_F^2; the antisymmetric part has the remaining share.
      symmetric_eigenvalues: 2R eigenvalues of (M + M^T) / 2, largest first; the remaining D - 2R eigenvalues are 0.
      antisymmetric_spectrum: w > 0 for each pair +-iw of eigenvalues of (M - M^T) / 2, largest first.
      null: 95% intervals expected by chance for a model with these shapes. For modes of the mean over positions of a
        rotary model, random kernels have the same rotation.
      head_null: 95% intervals of the weighted cosine of each head and layer, given the head's own spectrum or kernels.
        None if they were not computed: `measure` does not know the kernels, but `qkjax.analyze` computes them.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> kernel = np.random.default_rng(0).standard_normal((1, 12, 3, 4))
      >>> metrics = qkjax.measure(qkjax.decompose(kernel, kernel))  # Wq = Wk: every mode groups
      >>> bool(np.allclose(metrics.cosine, 1, atol=1e-5))
      True
    """

    singular_value: Float[Array, "layers heads rank"]
    cosine: Float[Array, "layers heads rank"]
    gap: Float[Array, "layers heads rank"]
    degenerate: Bool[Array, "layers heads rank"]
    cumulative_strength: Float[Array, "layers heads rank"]
    mean_cosine: Float[Array, "layers heads"]
    weighted_cosine: Float[Array, "layers heads"]
    effective_rank: Float[Array, "layers heads"]
    stable_rank: Float[Array, "layers heads"]
    symmetric_share: Float[Array, "layers heads"]
    symmetric_eigenvalues: Float[Array, "layers heads eigen"]
    antisymmetric_spectrum: Float[Array, "layers heads pairs"]
    null: Null
    head_null: HeadNull | None = None

    def chance(self) -> tuple[str, Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers"]]:
        """The default null, and the half widths of its intervals of the weighted cosine for heads and for layers.

        Without `head_null`, this is the null with Gaussian kernels.
        """
        if self.head_null is not None:
            return DEFAULT, *self.head_null.of(DEFAULT)
        shape = np.shape(self.weighted_cosine)
        null = self.null
        return "gaussian", np.full(shape, null.head_weighted_cosine), np.full(shape[0], null.weighted_cosine)

    def __repr__(self) -> str:
        weighted = np.asarray(self.weighted_cosine, np.float64)
        if weighted.ndim != 2:
            return f"Metrics(weighted_cosine {weighted.shape})"
        layers = ", ".join(f"{x:.2f}" for x in weighted.mean(-1)[:24]) + (", ..." if len(weighted) > 24 else "")
        shape = f"{len(weighted)} layers x {weighted.shape[1]} heads x {self.cosine.shape[-1]} modes"
        null, _, chance = self.chance()
        widest = np.max(chance, where=np.isfinite(chance), initial=0)
        return f"Metrics({shape}\n  weighted cosine by layer: {layers}\n  chance ({null}): at most {widest:.3f})"

    def _repr_html_(self) -> str:
        """The text of `repr` as HTML, for notebooks."""
        return f"<pre>{html.escape(repr(self))}</pre>"


METRIC_LABELS = {
    "singular_value": (
        "singular value",
        "1",
        "Strength s of each mode; the attribute `options` states the frame of M.",
    ),
    "cosine": ("cosine", "1", "u . v of each mode. Near 1: grouping (similar tokens). Near 0 or below: context."),
    "gap": ("relative gap", "1", "Distance from s to the nearest other s in the head, divided by the largest s."),
    "degenerate": ("degenerate", "1", "Whether the gap is so small that u, v and the cosine are not unique."),
    "cumulative_strength": ("cumulative strength", "1", "Share of sum(s) in the modes up to and including this mode."),
    "mean_cosine": ("mean cosine", "1", "Unweighted mean of the cosine over the modes of a head."),
    "weighted_cosine": ("weighted cosine", "1", "Mean of the cosine weighted by s: tr(M) / nuclear norm of M."),
    "effective_rank": ("effective rank", "modes", "exp(entropy of s / sum s)."),
    "stable_rank": ("stable rank", "modes", "Squared Frobenius norm of M divided by its squared spectral norm."),
    "symmetric_share": ("symmetric share", "1", "Share of the squared norm of M that is in its symmetric part."),
    "symmetric_eigenvalues": ("eigenvalue", "1", "Eigenvalues of the symmetric part of M, largest first."),
    "antisymmetric_spectrum": (
        "eigenvalue size",
        "1",
        "w for each pair +-iw of eigenvalues of the antisymmetric part of M.",
    ),
}
"""Axis label, units and description of each field of `Metrics` except the nulls, as stored in result files."""


def relative_gap(s: Float[Array, "rank"]) -> Float[Array, "rank"]:
    """Distance of each singular value to its nearest neighbour, divided by the largest singular value."""
    steps = s - jnp.append(s[1:], 0.0)
    above = jnp.append(jnp.inf, steps[:-1])
    return jnp.minimum(above, steps) / s[0]


def split_spectra(
    u: Float[Array, "*batch embed rank"],
    s: Float[Array, "*batch rank"],
    v: Float[Array, "*batch embed rank"],
    qr: Callable,
) -> tuple[Float[Array, "*batch eigen"], Float[Array, "*batch pairs"]]:
    """Returns the eigenvalues of M's symmetric part, and w > 0 for each pair +-iw of its antisymmetric part.

    Both parts act within the span of [u, v]. `qr` computes an orthonormal basis P of this span. The symmetric and
    antisymmetric parts of the small matrix P^T M P have the same nonzero eigenvalues as the parts of M.
    """
    basis, _ = qr(jnp.concatenate([u, v], axis=-1))
    dot, basis_t = partial(jnp.matmul, precision="highest"), jnp.swapaxes(basis, -1, -2)
    small = dot(dot(basis_t, u) * s[..., None, :], jnp.swapaxes(dot(basis_t, v), -1, -2))
    small_t = jnp.swapaxes(small, -1, -2)
    # i times an antisymmetric matrix is Hermitian, so both spectra come from one batched call:
    # two independent batched calls in one program can deadlock XLA on CPUs with few cores.
    parts = jnp.stack([(small + small_t) / 2 + 0j, (small - small_t) / 2 * 1j])
    symmetric, antisymmetric = jnp.linalg.eigvalsh(parts)[..., ::-1]
    return symmetric, antisymmetric[..., : antisymmetric.shape[-1] // 2]


def _measure_head(u, s, v):
    cosine = jnp.where(s[0] > 0, jnp.clip((u * v).sum(axis=0), -1.0, 1.0), jnp.nan)
    share = s / s.sum()
    energy = (s**2).sum()
    chain = jnp.matmul(v.T, u, precision="highest") * s[None]
    trace_of_square = (chain * chain.T).sum()  # tr(M^2), M^2 = u diag(s) v^T u diag(s) v^T
    gap = relative_gap(s)
    return {
        "singular_value": s,
        "cosine": cosine,
        "gap": gap,
        "degenerate": ~(gap > NEAR),
        "cumulative_strength": jnp.cumsum(share),
        "mean_cosine": cosine.mean(),
        "weighted_cosine": (share * cosine).sum(),
        "effective_rank": jnp.exp(jax.scipy.special.entr(share).sum()),
        "stable_rank": energy / s[0] ** 2,
        "symmetric_share": (1 + trace_of_square / energy) / 2,
    }


@partial(jax.jit, static_argnames="lapack")
def _measure(modes: Modes, lapack: bool) -> dict:
    symmetric, antisymmetric = split_spectra(*modes, jnp.linalg.qr if lapack else cholesky_qr)
    measured = jax.vmap(jax.vmap(_measure_head))(*modes)
    return {**measured, "symmetric_eigenvalues": symmetric, "antisymmetric_spectrum": antisymmetric}


def _measure_on_host(modes: Modes) -> dict:
    """Computes measures on the CPU if possible, which takes less time than compiling a program for an accelerator."""
    cpu = None if by_lapack() else cpu_device()
    if cpu is None:
        return _measure(modes, by_lapack())
    with jax.default_device(cpu):
        return _measure(jax.tree.map(np.asarray, modes), lapack=True)


def _measure_in_range(modes: Modes) -> dict:
    """Computes the measures of modes whose singular values leave the range of float32.

    Only three measures depend on the scale of a head; these are float64.
    """
    s, powers = float_range.relative(np.asarray(modes.s))
    measured = _measure_on_host(replace(modes, s=s))
    scaled = ("singular_value", "symmetric_eigenvalues", "antisymmetric_spectrum")
    return measured | {name: np.ldexp(np.asarray(measured[name], np.float64), powers) for name in scaled}


def measure(modes: Modes) -> Metrics:
    """Computes, in one jitted call, all measures of all heads from their modes.

    Args:
      modes: the result of `decompose`.

    Returns:
      `Metrics`. The value of a layer is the mean over its heads, such as `metrics.weighted_cosine.mean(-1)`.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> qkjax.measure(qkjax.decompose(query, key)).weighted_cosine.shape  # layers, heads
      (1, 3)
    """
    _, heads, embed, rank = modes.u.shape
    with one_blas_thread():
        measured = _measure_in_range(modes) if modes.s.dtype == np.float64 else _measure_on_host(modes)
        measured = jax.block_until_ready(measured)
    return Metrics(**measured, null=_null_of(embed, heads, rank, modes.frame.positions))


def _null_of(embed: int, heads: int, rank: int, positions: Positions | None) -> Null:
    """Values expected by chance: for the mean over positions, those of random kernels with the same rotation.

    At a single offset, rotated random kernels have the distribution of random kernels. If c differs between layers, the
    intervals are the widest of all layers.
    """
    if positions is None or positions.kind != "mean" or not np.any(positions.coherence):
        return null_band(embed, heads, rank)
    layers = {c for c in (positions.coherence if positions.window else [positions.coherence]) if any(c)}
    return Null(*np.max([null_band(embed, heads, 2 * len(c), c) for c in layers], axis=0).tolist())
