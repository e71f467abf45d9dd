"""Values of the weighted cosine expected by chance for each head, given what the head itself is like.

There are three nulls. They differ in what a random head has in common with the head itself:

    gaussian    its shape: kernels have independent Gaussian entries, so that singular values are nearly equal
    spectrum    its singular values: query directions are independent of key directions, and both are uniform
    rotation    its kernels: M = Wq Q Wk^T, where Q is a random rotation (orthogonal d x d matrix, uniform)

The rotation is the default. It keeps the space in which queries read tokens, the space in which keys read tokens, and
the sizes of both kernels in every direction. What it makes random is which query direction meets which key direction.
If the two spaces overlap, or if few directions are strong, cosines far from 0 are likely for any such pairing, and the
interval is wide. The other two nulls call such a head grouping or negative although its pairing is not special.

Wq and Wk are the factors that the checkpoint contains. Other factors with the same product, Wq G and Wk G^-T, have the
same `spectrum` interval, but another `rotation` interval unless G is a rotation.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Shaped

from qkjax.interaction.frame import fold
from qkjax.interaction.modes import Kernels, Modes
from qkjax.interaction.null import LEVEL, Null, half_width, weighted_width
from qkjax.interaction.svd.lapack import cores, one_blas_thread

NULLS = ("gaussian", "spectrum", "rotation")
DEFAULT = "rotation"
READINGS = ("grouping", "within chance", "negative")
ROTATIONS = 4000  # number of random rotations
LAYERS = 20_000  # number of layers that are sampled from them
EXACT = 32  # number of rotations for which the nuclear norm is computed exactly
CHUNK = 250  # number of rotations that are in memory at once


class HeadNull(NamedTuple):
    """Half widths of the intervals about 0 that contain 95% of weighted cosines by chance, for the nulls in `NULLS`.

    Heads whose M is zero have NaN. Heads of a layer are independent of each other by chance.

    Attributes:
      head: half widths for each head.
      layer: half widths for the mean over the heads of a layer whose M is not zero.
    """

    head: Float[np.ndarray, "null layers heads"]
    layer: Float[np.ndarray, "null layers"]

    def of(self, null: str = DEFAULT) -> tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers"]]:
        """The half widths for heads and for layers of one null."""
        index = NULLS.index(null)
        return self.head[index], self.layer[index]


def head_null(
    modes: Modes,
    null: Null,
    query_kernel: Kernels,
    key_kernel: Kernels,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
) -> HeadNull:
    """Computes the intervals that are expected by chance for every head, for each null in `NULLS`.

    The intervals `spectrum` are exact up to the shape of the distribution (see `weighted_width`). The intervals
    `rotation` come from 4,000 rotations (see `rotated_cosines`) and are accurate to about 4%. The seed is fixed.

    Args:
      modes: the modes of the kernels, in any frame.
      null: the intervals for Gaussian kernels of this shape, such as `measure(modes).null`.
      query_kernel, key_kernel: the kernels whose M the modes are those of, before folding.
      norm_scale: the LayerNorm scale that M includes, if any; as in `decompose`.

    Example:
      >>> import qkjax
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> modes = qkjax.decompose(query, key)
      >>> widths = head_null(modes, qkjax.measure(modes).null, query, key)
      >>> widths.head.shape, widths.layer.shape
      ((3, 1, 3), (3, 1))
    """
    s = np.asarray(modes.s, np.float64)
    embed, center = query_kernel.shape[1], modes.frame.center
    variance, dimensions = weighted_width(s, max(embed - center, 2))
    exists = np.isfinite(variance)
    gaussian = np.where(exists, null.head_weighted_cosine, np.nan)
    cosines = rotated_cosines(query_kernel, key_kernel, norm_scale, center)
    rotation = np.where(exists, np.quantile(np.abs(cosines), LEVEL, axis=0), np.nan)
    layers = [
        np.where(exists.any(-1), null.weighted_cosine * np.sqrt(s.shape[1] / np.maximum(exists.sum(-1), 1)), np.nan),
        _layer_of_spectra(variance, dimensions),
        _layer_of_rotations(np.where(exists, cosines, np.nan)),
    ]
    return HeadNull(np.stack([gaussian, half_width(variance, dimensions), rotation]), np.stack(layers))


def readings(
    weighted_cosine: Float[Array | np.ndarray, "..."], width: Float[np.ndarray, "..."]
) -> Shaped[np.ndarray, "..."]:
    """States in words whether weighted cosines lie above, within or below the interval expected by chance.

    Of 100 heads that are as by chance, about 5 lie outside of their intervals.

    Args:
      weighted_cosine: weighted cosines of heads or layers.
      width: half widths of the intervals about 0.

    Returns:
      Words of `READINGS`; "zero" if M is zero, so that the cosine is NaN.

    Example:
      >>> readings(np.array([0.4, 0.01, -0.3]), np.array([0.02, 0.02, 0.02])).tolist()
      ['grouping', 'within chance', 'negative']
    """
    value = np.asarray(weighted_cosine, np.float64)
    within = np.where(np.abs(value) <= width, READINGS[1], READINGS[2])
    return np.where(np.isnan(value), "zero", np.where(value > width, READINGS[0], within)).astype(object)


def _layer_of_spectra(
    variance: Float[np.ndarray, "layers heads"], dimensions: Float[np.ndarray, "layers heads"]
) -> Float[np.ndarray, "layers"]:
    """Half widths for the means over heads. Variances and fourth cumulants of independent heads add up."""
    total = np.nansum(variance, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        combined = total**2 / np.nansum(variance**2 / dimensions, -1)
        return half_width(total / np.isfinite(variance).sum(-1) ** 2, combined)


def _layer_of_rotations(cosines: Float[np.ndarray, "rotations layers heads"]) -> Float[np.ndarray, "layers"]:
    """Half widths for the mean over heads, for layers whose heads have independent rotations."""
    rng, widths = np.random.default_rng(1), []
    for layer in np.moveaxis(cosines, 1, 0):
        heads = layer[:, np.isfinite(layer[0])]
        sampled = rng.permuted(np.tile(heads, (-(-LAYERS // len(heads)), 1)), axis=0)
        widths.append(np.quantile(np.abs(sampled.mean(-1)), LEVEL) if heads.size else np.nan)
    return np.array(widths)


def rotated_cosines(
    query_kernel: Kernels,
    key_kernel: Kernels,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
    center: bool = False,
    rotations: int = ROTATIONS,
) -> Float[np.ndarray, "rotations layers heads"]:
    """Weighted cosines tr(M) / ||M||_nuclear of M = Wq Q Wk^T for random rotations Q, which all heads share.

    Let Eq diag(a^2) Eq^T and Ek diag(b^2) Ek^T be the eigendecompositions of Wq^T Wq and Wk^T Wk. Eq^T Q Ek has the
    distribution of Q, so Q stands for it, and

        ||M||_nuclear = ||diag(a) Q diag(b)||_nuclear    and    tr(M) = tr(Q Ek^T Wk^T Wq Eq)

    The nuclear norm is computed exactly for the first 32 rotations, and predicted for the other rotations from the
    Frobenius norm by the linear function that fits the first 32 best.

    Args:
      query_kernel, key_kernel, norm_scale, center: as in `decompose`.
      rotations: number of rotations.

    Example:
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> rotated_cosines(query, key, rotations=100).shape
      (100, 1, 3)
    """
    layers, _, heads, head_dim = query_kernel.shape
    sizes, trace = _factors(query_kernel, key_kernel, norm_scale, center)
    energy = (sizes[0][:, :, None] ** 2 * sizes[1][:, None, :] ** 2).reshape(layers * heads, -1).astype(np.float32)
    parts, exact = [], None
    for rotation in _rotations(head_dim, rotations):
        flat = rotation.reshape(len(rotation), -1).astype(np.float32)
        parts.append((flat @ trace.T, np.sqrt(flat**2 @ energy.T)))
        if exact is None:
            exact = _nuclear_norms(sizes, rotation[:EXACT])
    traces, norms = (np.concatenate(x).astype(np.float64) for x in zip(*parts, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = traces / _predicted(norms, exact, head_dim)
    return cosines.reshape(rotations, layers, heads)


def _rotations(head_dim: int, count: int) -> Iterator[Float[np.ndarray, "chunk head_dim head_dim"]]:
    """Uniform orthogonal matrices: QR factors, with the signs that make them unique, of Gaussian matrices.

    Each factor is used four times, with its rows shifted, because this is faster.
    """
    rng, shifts = np.random.default_rng(0), range(0, head_dim, -(-head_dim // 4))
    while True:
        q, r = np.linalg.qr(rng.standard_normal((CHUNK, head_dim, head_dim)))
        q *= np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
        for shift in shifts:
            yield np.roll(q[:count], shift, axis=1)
            count -= CHUNK
            if count <= 0:
                return


def _factors(query_kernel, key_kernel, norm_scale, center) -> tuple:
    """The sizes a and b of both kernels (2, heads of all layers, d), and Wk^T Wq in their axes, as rows of d * d.

    Each head is divided by the largest a times the largest b. Heads that are not finite are set to zero.
    """
    sizes, traces = [], []
    with one_blas_thread(), np.errstate(all="ignore"):
        for layer in range(len(query_kernel)):
            scale = None if norm_scale is None else norm_scale[layer]
            query, key = (
                np.moveaxis(fold(np.asarray(kernel[layer], np.float64), scale, center), 1, 0)
                for kernel in (query_kernel, key_kernel)
            )
            grams = np.stack([np.swapaxes(query, 1, 2) @ query, np.swapaxes(key, 1, 2) @ key])
            cross = np.swapaxes(key, 1, 2) @ query
            finite = np.isfinite(grams).all((0, 2, 3))
            values, (query_axes, key_axes) = np.linalg.eigh(np.where(finite[:, None, None], grams, 0))
            root = np.sqrt(np.maximum(values, 0))
            largest = np.maximum(root.max(-1, keepdims=True), np.finfo(np.float64).tiny)
            rotated = np.swapaxes(key_axes, 1, 2) @ np.where(finite[:, None, None], cross, 0) @ query_axes
            sizes.append(root / largest)
            traces.append(np.swapaxes(rotated / largest[0][..., None] / largest[1][..., None], 1, 2))
    trace = np.concatenate(traces).astype(np.float32)
    return np.concatenate(sizes, axis=1), trace.reshape(len(trace), -1)


def _nuclear_norms(
    sizes: Float[np.ndarray, "2 heads head_dim"], rotation: Float[np.ndarray, "exact head_dim head_dim"]
) -> Float[np.ndarray, "exact heads"]:
    """Nuclear norms of diag(a) Q diag(b) for every head and rotation."""

    def of(index: tuple[int, int]) -> float:
        which, head = index
        return np.linalg.svd(sizes[0, head][:, None] * rotation[which] * sizes[1, head], compute_uv=False).sum()

    shape = (len(rotation), sizes.shape[1])
    with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:
        return np.fromiter(threads.map(of, product(*map(range, shape))), np.float64).reshape(shape)


def _predicted(
    norms: Float[np.ndarray, "rotations heads"], exact: Float[np.ndarray, "exact heads"], head_dim: int
) -> Float[np.ndarray, "rotations heads"]:
    """Nuclear norms from Frobenius norms by linear regression; they lie between ||M||_F and sqrt(d) ||M||_F."""
    known = norms[: len(exact)]
    centred = known - known.mean(0)
    variance = (centred**2).sum(0)
    slope = np.where(variance > 0, (centred * (exact - exact.mean(0))).sum(0) / np.where(variance > 0, variance, 1), 0)
    nuclear = np.clip(exact.mean(0) + slope * (norms - known.mean(0)), norms, np.sqrt(head_dim) * norms)
    nuclear[: len(exact)] = exact
    return nuclear
