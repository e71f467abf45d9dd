"""Rows of the decomposition of all heads and of its alternatives in jax, of metrics and of edits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import qkjax
from benchmarks.gpu.timing import seconds_of
from benchmarks.shapes import decomposition_products, kernels_of, shape_of
from qkjax.interaction.edit import edit
from qkjax.interaction.query_key import QueryKey

CHECKED = 2
"""Heads of the first layer whose modes are compared with the dense M in float64."""


def decompose(model: str, condition: float | None, tiny: bool) -> dict:
    """`qkjax.decompose` of random kernels, scaled to a condition number unless it is None.

    The floor is two thin products for each kernel.
    """
    kernels = jnp.asarray(kernels_of(model, tiny, condition))
    compile_s, seconds = seconds_of(lambda: qkjax.decompose(*kernels), jax.block_until_ready)
    return {
        "ms": 1e3 * seconds,
        "compile_s": compile_s,
        "error": _error(kernels, qkjax.decompose(*kernels)),
        "flop": 2 * decomposition_products(model, tiny),
        "bytes": 2 * kernels.nbytes,
        "unit": "float32 highest",
    }


def _error(kernels, modes: qkjax.Modes) -> float:
    """Largest error of an entry of M = sum_n s_n u_n v_n^T, relative to the largest singular value of the head."""
    u, s, v = (np.asarray(x[0, :CHECKED], np.float64) for x in modes)
    query, key = np.moveaxis(np.asarray(kernels[:, 0, :, :CHECKED], np.float64), 2, 1)
    exact = query @ np.swapaxes(key, -1, -2)
    difference = np.abs((u * s[:, None]) @ np.swapaxes(v, -1, -2) - exact).max((1, 2))
    return float((difference / s[:, 0]).max())


def thin_products(model: str, tiny: bool) -> dict:
    """The Gram matrices of all kernels, and a product of the kernels with them: no decomposition avoids these."""
    kernels = jnp.moveaxis(jnp.asarray(kernels_of(model, tiny)), 3, 2)

    @jax.jit
    def run(factors):
        grams = jnp.einsum("...di,...dj->...ij", factors, factors, precision="highest")
        return jnp.einsum("...di,...ij->...dj", factors, grams, precision="highest")

    compile_s, seconds = seconds_of(lambda: run(kernels), jax.block_until_ready)
    flop, size = 2 * decomposition_products(model, tiny), 2 * kernels.nbytes
    return {"ms": 1e3 * seconds, "compile_s": compile_s, "flop": flop, "bytes": size, "unit": "float32 highest"}


def cores_of(model: str, tiny: bool) -> np.ndarray:
    """Random matrices with the shape of the cores Rq Rk^T of all heads, (layers * heads, head_dim, head_dim)."""
    layers, _, heads, head_dim, _ = shape_of(model, tiny)
    return np.random.default_rng(0).standard_normal((layers * heads, head_dim, head_dim), dtype=np.float32)


def _svd(cores, algorithm):
    return jax.lax.linalg.svd(cores, full_matrices=False, algorithm=algorithm)


def _jacobi_eigh(cores):
    gram = jnp.matmul(jnp.swapaxes(cores, -1, -2), cores, precision="highest")
    return jax.lax.linalg.eigh(gram, implementation=jax.lax.linalg.EighImplementation.JACOBI)


_Algorithm = jax.lax.linalg.SvdAlgorithm
LIBRARY = {
    "jnp.linalg.svd": partial(jnp.linalg.svd, full_matrices=False),
    "svd POLAR": partial(_svd, algorithm=_Algorithm.POLAR),
    "svd JACOBI": partial(_svd, algorithm=_Algorithm.JACOBI),
    "svd QR": partial(_svd, algorithm=_Algorithm.QR),
    "eigh JACOBI of the Gram matrices": _jacobi_eigh,
}
"""Alternatives in jax for the SVD of the cores alone; eigh of Gram matrices squares the condition number."""


def library(name: str, model: str, tiny: bool) -> dict:
    """An alternative for the SVD of the cores of all heads, without the QR of the kernels."""
    cores = jnp.asarray(cores_of(model, tiny))
    run = jax.jit(LIBRARY[name])
    compile_s, seconds = seconds_of(lambda: run(cores), jax.block_until_ready, 3)
    return {"ms": 1e3 * seconds, "compile_s": compile_s}


def measure(model: str, tiny: bool) -> dict:
    """`qkjax.measure` of all heads."""
    modes = qkjax.decompose(*kernels_of(model, tiny))
    compile_s, seconds = seconds_of(lambda: qkjax.measure(modes).cosine, jax.block_until_ready, 3)
    return {"ms": 1e3 * seconds, "compile_s": compile_s}


def edits(model: str, kind: str, tiny: bool) -> dict:
    """An edit of all modes of all heads."""
    layers, embed, heads, head_dim, _ = shape_of(model, tiny)
    kernels, bias = kernels_of(model, tiny), jnp.zeros((layers, heads, head_dim))
    norm = jnp.zeros((layers, embed))
    parameters = QueryKey(*map(jnp.asarray, kernels), bias, bias, norm, norm)
    modes, weights = qkjax.decompose(*kernels), jnp.ones((layers, heads, head_dim))
    run = jax.jit(lambda p, m, w: edit(p, m, kind, w))
    compile_s, seconds = seconds_of(lambda: run(parameters, modes, weights), jax.block_until_ready, 3)
    return {"ms": 1e3 * seconds, "compile_s": compile_s}
