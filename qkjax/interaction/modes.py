"""Computes the singular modes of the query-key interaction M = Wq Wk^T of every head, without forming M."""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction import float_range
from qkjax.interaction.frame import PLAIN, Frame, fold
from qkjax.interaction.svd.cholesky_qr import cholesky_qr
from qkjax.interaction.svd.jacobi import jacobi_svd
from qkjax.interaction.svd.lapack import by_lapack, fast_on_host, modes_of_kernels

Kernels = Float[Array | np.ndarray, "layers embed heads head_dim"]


@partial(jax.tree_util.register_dataclass, data_fields=("u", "s", "v"), meta_fields=("frame",))
@dataclass(frozen=True)
class Modes:
    """Singular modes of every head: M = sum_n s_n u_n v_n^T, strongest first. Unpacks as `u, s, v = modes`.

    A mode projects a query token y_i to y_i . u_n and a key token y_j to y_j . v_n; s_n is the weight of their product.
    u_n and v_n share an arbitrary sign, chosen so that the entry of u_n with the largest magnitude is positive.

    Attributes:
      u, v: query and key directions, of unit length.
      s: strengths, in descending order.
      frame: the frame of M; functions that need the plain frame refuse modes in any other frame.

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
        """An HTML table of the five heads with the largest sums of singular values."""
        if np.ndim(self.u) != 4:
            return html.escape(repr(self))
        s, u, v = (np.asarray(x, np.float64) for x in (self.s, self.u, self.v))
        total = s.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (s * (u * v).sum(2)).sum(-1) / total
        cells = "<tr><th>strongest heads</th><th>sum of s</th><th>weighted cosine</th></tr>"
        for flat_index in np.argsort(-np.nan_to_num(total), axis=None)[:5]:
            head = np.unravel_index(flat_index, total.shape)
            cells += f"<tr><td>L{head[0]} H{head[1]}</td><td>{total[head]:.3g}</td><td>{cosine[head]:.2f}</td></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{cells}</table>"


def require_plain(modes: Modes, what: str) -> None:
    """Checks that modes are in the plain frame, in which M acts on the output of the LayerNorm.

    Args:
      modes: the modes to check.
      what: name of the function that needs the plain frame, for the error message.

    Raises:
      QkjaxError: the modes are not in the plain frame.
    """
    if modes.frame != PLAIN:
        raise QkjaxError(
            f"{what} got modes in the frame {modes.frame}: expected the plain frame; call decompose without "
            "fold_scale, center and normalize, for a model without rotary positions"
        )


def decompose_head(query: Float[Array, "embed head_dim"], key: Float[Array, "embed head_dim"]) -> Modes:
    """Computes the modes of one head; can be used within a jitted program.

    A thin QR factorises both kernels, and an SVD factorises the small product of the two triangles:
    Wq = Qq Rq, Wk = Qk Rk, Rq Rk^T = A S B^T  =>  u = Qq A, v = Qk B.
    Householder QR never squares a condition number, so weak modes remain accurate in float32. The function is
    differentiable.
    """
    # One stacked QR, then the SVD that depends on it: XLA can deadlock on CPUs with few cores
    # if two batched LAPACK calls of one program may run at the same time.
    bases, cores = jnp.linalg.qr(jnp.stack([query, key]))
    return _assemble(bases, *jnp.linalg.svd(jnp.matmul(cores[0], cores[1].T, precision="highest")))


def decompose_heads(query: Float[Array, "*batch embed head_dim"], key: Float[Array, "*batch embed head_dim"]) -> Modes:
    """Computes the modes of many heads at once, with operations that are fast on accelerators.

    `cholesky_qr` computes the thin QR, and `jacobi_svd` computes the SVD of the product of the triangles.
    """
    bases, cores = cholesky_qr(jnp.stack([query, key]))
    return _assemble(bases, *jacobi_svd(jnp.matmul(cores[0], jnp.swapaxes(cores[1], -1, -2), precision="highest")))


def decompose_in_program(
    query: Float[Array, "*batch embed head_dim"], key: Float[Array, "*batch embed head_dim"]
) -> Modes:
    """Computes the modes of heads within a jitted program, by the fastest method on this platform."""
    if not by_lapack():
        return decompose_heads(query, key)
    decompose_all = decompose_head
    for _ in query.shape[:-2]:
        decompose_all = jax.vmap(decompose_all)
    return decompose_all(query, key)


def _assemble(bases, left, s, right) -> Modes:
    """Combines orthonormal bases and the SVD of the small product into modes, with the sign that `Modes` specifies."""
    u, v = jnp.matmul(bases, jnp.stack([left, jnp.swapaxes(right, -1, -2)]), precision="highest")
    # The entry of largest magnitude is either the maximum or the minimum.
    sign = jnp.where(u.max(-2, keepdims=True) + u.min(-2, keepdims=True) < 0, -1.0, 1.0).astype(u.dtype)
    return Modes(u * sign, s, v * sign)


@partial(jax.jit, static_argnames=("center", "normalize", "lapack"))
def _decompose(query_kernel, key_kernel, norm_scale, center, normalize, lapack) -> Modes:
    def layer(arguments):
        query, key, scale = arguments
        query, key = (fold(kernel.astype(jnp.float32), scale, center) for kernel in (query, key))
        if normalize:
            query = query / np.sqrt(query.shape[-1]).astype(np.float32)
        return jax.vmap(decompose_head, in_axes=1)(query, key) if lapack else (query, key)

    if lapack:
        # On a CPU, one layer at a time is as fast as all layers at once, and needs a third of the memory. (Groups of
        # layers and a remainder would be two batched LAPACK calls in one program, which can deadlock XLA.)
        return jax.lax.map(layer, (query_kernel, key_kernel, norm_scale))
    folded = jax.vmap(layer)((query_kernel, key_kernel, norm_scale))
    return decompose_heads(*(jnp.moveaxis(x, 2, 1) for x in folded))


def _on_all_devices(arrays: tuple, center: bool, normalize: bool) -> Modes:
    """Distributes the layers over the devices of this host and computes modes; the result is on the first device.

    One program is compiled for all devices, and each device runs it on its own layers.
    """
    devices = jax.local_devices()
    layers = len(arrays[0])
    split = NamedSharding(Mesh(np.array(devices), ("layers",)), PartitionSpec("layers"))
    index = np.minimum(np.arange(layers + -layers % len(devices)), layers - 1)  # the last layer fills up equal shares
    modes = _on_mesh(split.mesh, center, normalize)(
        *jax.device_put([x if x is None else x[index] for x in arrays], split)
    )
    return jax.tree.map(lambda x: x[:layers], jax.device_put(modes, devices[0]))


@lru_cache(maxsize=16)
def _on_mesh(mesh: Mesh, center: bool, normalize: bool) -> Callable[..., Modes]:
    """The program of `_on_all_devices`. No device waits for another one, since heads are independent."""

    def decompose_share(*arrays) -> Modes:
        return _decompose(*arrays, center, normalize, lapack=False)

    over_layers = PartitionSpec("layers")
    share = jax.shard_map(decompose_share, mesh=mesh, in_specs=over_layers, out_specs=over_layers, check_vma=False)
    return jax.jit(share)


def decompose(
    query_kernel: Kernels,
    key_kernel: Kernels,
    *,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
    center: bool = False,
    normalize: bool = False,
) -> Modes:
    """Computes the singular modes of M = Wq Wk^T for all layers and heads.

    On a CPU, threads call LAPACK in float64, and the result is rounded to float32. Kernels in numpy arrays are
    decomposed on the CPU in this way even if there is an accelerator, unless they are so large (see `fast_on_host`)
    that compiling a program for the accelerator takes less time. For arrays on an accelerator, and within jitted
    programs, the computation is one float32 program.

    Let x be the normalised token (mean 0, variance 1) and y = g * x + b the output of the LayerNorm before attention:

    - by default, the modes are those of M, which acts on y, as in the paper (section 2.2);
    - `norm_scale=g` includes the LayerNorm scale: the modes are those of diag(g) M diag(g), which acts on x;
    - `center` excludes the mean direction, which LayerNorm removes from x: the modes are those of
      C diag(g) M diag(g) C, where C = I - 11^T / D, and g = 1 if `norm_scale` is not given;
    - `normalize` divides M by sqrt(head_dim), so that s has the units of attention logits.

    Args:
      query_kernel, key_kernel: (layers, embed, heads, head_dim), in any floating-point precision.
      norm_scale: (layers, embed), scale of the LayerNorm before attention.

    Returns:
      `Modes` in float32: u and v of shape (layers, heads, embed, rank), and s of shape (layers, heads, rank), where
      rank = min(embed, head_dim). If the s of any head leaves the range of float32, s is float64. Heads whose kernels
      are not finite have NaN in u, s and v. If neighbouring s are nearly equal, only the space that their vectors span
      is defined; `measure` marks such modes as degenerate.

      With LAPACK, s is exact up to the rounding to float32. Otherwise, the error of s is about 1e-6 times the largest s
      of the head. If the ratio ||Wq|| ||Wk|| / ||M|| is far above 1, the error is larger by this factor. (In trained
      models, the ratio is small.)

    Raises:
      QkjaxError: the kernels do not have equal shapes with four axes, or the shape of `norm_scale` does not match them.
    """
    if query_kernel.ndim != 4 or query_kernel.shape != key_kernel.shape:
        raise QkjaxError(
            f"query_kernel has shape {query_kernel.shape} and key_kernel {key_kernel.shape}: expected equal shapes "
            "(layers, embed, heads, head_dim); pass the kernels of `qkjax.query_key`"
        )
    if norm_scale is not None and norm_scale.shape != query_kernel.shape[:2]:
        raise QkjaxError(
            f"norm_scale has shape {norm_scale.shape}: expected (layers, embed) = {query_kernel.shape[:2]}; pass the "
            "norm_scale of `qkjax.query_key`"
        )
    arrays = (query_kernel, key_kernel, norm_scale)
    modes = _decompose_fastest(arrays, center, normalize)
    if not any(isinstance(x, jax.core.Tracer) for x in arrays):
        split = float_range.split_powers(np.asarray(modes.s), query_kernel, key_kernel)
        if split is not None:
            *kernels, powers = split
            modes = _decompose_fastest((*kernels, norm_scale), center, normalize)
            modes = replace(modes, s=np.ldexp(np.asarray(modes.s, np.float64), powers))
    return replace(modes, frame=Frame(norm_scale is not None, center, normalize))


def _decompose_fastest(arrays: tuple, center: bool, normalize: bool) -> Modes:
    """Computes the modes by the method that is fastest on this machine; the caller sets the frame."""
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return _decompose(*arrays, center, normalize, by_lapack())
    if by_lapack() or fast_on_host(arrays):
        modes = modes_of_kernels(*(None if x is None else np.asarray(x) for x in arrays), center, normalize)
        return Modes(*jax.device_put(modes, may_alias=True))
    if jax.local_device_count() > 1:
        return _on_all_devices(arrays, center, normalize)
    return _decompose(*(None if x is None else jnp.asarray(x) for x in arrays), center, normalize, lapack=False)
