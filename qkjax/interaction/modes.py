"""Singular modes of the query-key interaction M = Wq Wk^T, head by head, without forming M."""

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.frame import PLAIN, Frame
from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.jacobi import jacobi_svd
from qkjax.interaction.svd.lapack import modes_of_heads

Kernels = Float[Array | np.ndarray, "layers embed heads head_dim"]


@partial(jax.tree_util.register_dataclass, data_fields=("u", "s", "v"), meta_fields=("frame",))
@dataclass(frozen=True)
class Modes:
    """Singular modes of every head: M = sum_n s_n u_n v_n^T, strongest first. Unpacks as `u, s, v = modes`.

    A token y sends y . u_n as a query and y . v_n as a key; s_n is the strength of their product.
    (u_n, v_n) have one sign together: the entry of u_n that is largest in magnitude is positive.

    Attributes:
      u, v: query and key directions, unit length.
      s: strengths, in descending order.
      frame: in which M is taken; what needs the plain frame refuses another.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.modes import decompose
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> decompose(query, key, normalize=True)
      Modes(1 layers x 3 heads x 4 modes, embed 12, frame normalize)
    """

    u: Float[Array | np.ndarray, "*heads embed rank"]
    s: Float[Array | np.ndarray, "*heads rank"]
    v: Float[Array | np.ndarray, "*heads embed rank"]
    frame: Frame = PLAIN

    def __iter__(self) -> Iterator[Array]:
        return iter((self.u, self.s, self.v))

    def __repr__(self) -> str:
        shape = getattr(self.u, "shape", ())
        if len(shape) != 4:
            return f"Modes(u {shape}, frame {self.frame})"
        return f"Modes({shape[0]} layers x {shape[1]} heads x {shape[3]} modes, embed {shape[2]}, frame {self.frame})"

    def _repr_html_(self) -> str:
        """The strongest heads by the sum of their singular values."""
        if np.ndim(self.u) != 4:
            return html.escape(repr(self))
        s, u, v = (np.asarray(x, np.float64) for x in (self.s, self.u, self.v))
        total = s.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (s * (u * v).sum(2)).sum(-1) / total
        cells = "<tr><th>strongest heads</th><th>sum of s</th><th>weighted cosine</th></tr>"
        for place in np.argsort(-np.nan_to_num(total), axis=None)[:5]:
            at = np.unravel_index(place, total.shape)
            cells += f"<tr><td>L{at[0]} H{at[1]}</td><td>{total[at]:.3g}</td><td>{cosine[at]:.2f}</td></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{cells}</table>"


def require_plain(modes: Modes, what: str) -> None:
    """Refuses modes in another frame than the plain one.

    Args:
      what: needs the plain frame, for the error.

    Raises:
      QkjaxError: the frame is another.
    """
    if modes.frame != PLAIN:
        raise QkjaxError(
            f"{what} needs modes in the plain frame, and these are in the frame {modes.frame}: call decompose without "
            "fold_scale, center and normalize"
        )


def _fold(
    kernel: Float[Array | np.ndarray, "embed heads head_dim"],
    norm_scale: Float[Array | np.ndarray, "embed"] | None,
    center: bool,
) -> Float[Array | np.ndarray, "embed heads head_dim"]:
    """Kernels in the requested frame, C diag(g) W, in their own precision; see `decompose`."""
    if norm_scale is not None:
        kernel = kernel * norm_scale.astype(kernel.dtype)[:, None, None]
    return kernel - kernel.mean(axis=0, keepdims=True) if center else kernel


def decompose_head(query: Float[Array, "embed head_dim"], key: Float[Array, "embed head_dim"]) -> Modes:
    """One head, for use within a jitted program: thin QR of both factors, SVD of the small core, mapped back.

    Wq = Qq Rq, Wk = Qk Rk, Rq Rk^T = A S B^T  =>  u = Qq A, v = Qk B.
    Householder QR never squares a condition number, so the small modes survive float32. Can be differentiated.
    """
    # One stacked QR, then the SVD that needs its result: XLA may deadlock on CPUs with few cores
    # when two batched LAPACK calls of one program can run at the same time.
    bases, cores = jnp.linalg.qr(jnp.stack([query, key]))
    return _mapped_back(bases, *jnp.linalg.svd(jnp.matmul(cores[0], cores[1].T, precision="highest")))


def decompose_heads(query: Float[Array, "*batch embed head_dim"], key: Float[Array, "*batch embed head_dim"]) -> Modes:
    """Many heads at once, by large products and element-wise operations alone: the same modes, for accelerators.

    Thin QR and SVD of the cores are those of `cholesky_qr` and `jacobi_svd`.
    """
    bases, cores = cholesky_qr(jnp.stack([query, key]))
    return _mapped_back(bases, *jacobi_svd(jnp.matmul(cores[0], jnp.swapaxes(cores[1], -1, -2), precision="highest")))


def _mapped_back(bases, left, s, right) -> Modes:
    """u and v from the modes of the core, with the sign that `Modes` says."""
    u, v = jnp.matmul(bases, jnp.stack([left, jnp.swapaxes(right, -1, -2)]), precision="highest")
    # The entry of largest magnitude is the highest one, or it is the lowest.
    sign = jnp.where(u.max(-2, keepdims=True) + u.min(-2, keepdims=True) < 0, -1.0, 1.0).astype(u.dtype)
    return Modes(u * sign, s, v * sign)


@partial(jax.jit, static_argnames=("center", "normalize", "lapack"))
def _decompose(query_kernel, key_kernel, norm_scale, center, normalize, lapack) -> Modes:
    def layer(arguments):
        query, key, scale = arguments
        query, key = (_fold(kernel.astype(jnp.float32), scale, center) for kernel in (query, key))
        if normalize:
            query = query / np.sqrt(query.shape[-1]).astype(np.float32)
        return jax.vmap(decompose_head, in_axes=1)(query, key) if lapack else (query, key)

    if lapack:
        # A layer at a time is as fast on a CPU, and needs a third of the memory. (Groups of layers with a rest would be
        # two batched LAPACK calls in one program, on which XLA can deadlock.)
        return jax.lax.map(layer, (query_kernel, key_kernel, norm_scale))
    folded = jax.vmap(layer)((query_kernel, key_kernel, norm_scale))
    return decompose_heads(*(jnp.moveaxis(x, 2, 1) for x in folded))


def _on_all_devices(arrays: tuple, center: bool, normalize: bool) -> Modes:
    """Layers shared among the devices of this host; the modes are then on the first one."""
    devices = jax.local_devices()
    shares = np.array_split(np.arange(len(arrays[0])), len(devices))
    parts = [
        _decompose(*jax.device_put([None if x is None else x[own] for x in arrays], device), center, normalize, False)
        for device, own in zip(devices, shares, strict=True)
        if len(own)
    ]  # each is on its way before the first one is done
    return jax.tree.map(lambda *x: jnp.concatenate(x), *jax.device_put(parts, devices[0]))


def _on_threads(query_kernel, key_kernel, norm_scale, center: bool, normalize: bool) -> Modes:
    """Heads shared among the cores of a CPU, see `qkjax.interaction.svd.lapack`."""
    layers, embed, heads, head_dim = query_kernel.shape

    def factors(layer: int, head: int) -> np.ndarray:
        both = np.empty((2, embed, head_dim))
        both[0], both[1] = query_kernel[layer, :, head], key_kernel[layer, :, head]
        scale = None if norm_scale is None else norm_scale[layer]
        both = np.moveaxis(_fold(np.moveaxis(both, 0, 1), scale, center), 1, 0)
        if normalize:
            both[0] /= np.sqrt(head_dim)
        return both

    found = modes_of_heads(factors, (layers, heads, embed, head_dim))
    return Modes(*jax.device_put(found, may_alias=True))


def by_lapack() -> bool:
    """Whether `decompose` uses LAPACK, which is fast on CPUs, rather than products, which are fast on accelerators."""
    return jax.default_backend() == "cpu"


def decompose(
    query_kernel: Kernels,
    key_kernel: Kernels,
    *,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
    center: bool = False,
    normalize: bool = False,
) -> Modes:
    """Singular modes of M = Wq Wk^T of all layers and heads, in one call.

    On accelerators and within jitted programs it is one program, in float32; on a CPU threads do it by LAPACK in
    float64, which is faster there, and the result is rounded.

    With x the normalised token (mean 0, variance 1) and y = g * x + b what attention sees:

    - by default M acts on y, as in the paper (section 2.2);
    - `norm_scale=g` folds the LayerNorm scale: diag(g) M diag(g), which acts on x;
    - `center` takes out the mean direction, which LayerNorm removes from x: with C = I - 11^T / D,
      C diag(g) M diag(g) C; without `norm_scale`, g = 1;
    - `normalize` divides M by sqrt(head_dim), so that s is in units of the attention logit.

    Args:
      query_kernel, key_kernel: (layers, embed, heads, head_dim), floating point of any width.
      norm_scale: (layers, embed), scale of the LayerNorm before attention.

    Returns:
      `Modes` u (layers, heads, embed, rank), s (layers, heads, rank), v like u, with
      rank = min(embed, head_dim), float32. s is accurate to about 1e-6 of the largest of its head, times
      ||Wq|| ||Wk|| / ||M|| where that is far above 1 (it is a few in trained models); on a CPU to float32's own
      rounding. NaN in heads whose kernels are not finite. If
      neighbouring s are nearly equal, single vectors are not defined, only the space that they span; `measure` marks
      such modes.

    Raises:
      QkjaxError: the kernels are not of one shape with four axes, or `norm_scale` does not fit them.
    """
    if query_kernel.ndim != 4 or query_kernel.shape != key_kernel.shape:
        raise QkjaxError(
            f"decompose got kernels {query_kernel.shape} and {key_kernel.shape}; expected two of one shape "
            "(layers, embed, heads, head_dim)"
        )
    if norm_scale is not None and norm_scale.shape != query_kernel.shape[:2]:
        raise QkjaxError(
            f"norm_scale has shape {norm_scale.shape}; expected (layers, embed) = {query_kernel.shape[:2]}"
        )
    frame = Frame(norm_scale is not None, center, normalize)
    return replace(_by_machine((query_kernel, key_kernel, norm_scale), center, normalize), frame=frame)


def _by_machine(arrays: tuple, center: bool, normalize: bool) -> Modes:
    """`decompose` by what is fast on this machine."""
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return _decompose(*arrays, center, normalize, by_lapack())
    if by_lapack():
        return _on_threads(*(None if x is None else np.asarray(x) for x in arrays), center, normalize)
    arrays = tuple(None if x is None else jnp.asarray(x) for x in arrays)
    if jax.local_device_count() == 1:
        return _decompose(*arrays, center, normalize, lapack=False)
    return _on_all_devices(arrays, center, normalize)
