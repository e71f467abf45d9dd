"""How fast all heads of a ViT are decomposed, side by side with other ways, in one run.

    python benchmarks/decompose.py            # ViT-S, B, L, H; several minutes
    python benchmarks/decompose.py --models S

The floor is what no method avoids: with the factors Wq, Wk (D x d), two Gram-sized products
(D d^2 multiply-adds each) to find the core and two to map it back to u and v. `bare products` runs
just these, jitted, on the same arrays. Dense methods take minutes, so they are timed on a few heads
and scaled up; the table says so by "x heads". `jnp.linalg.svd of the cores` has the QR of the factors done already.
Memory is the growth of the peak over the size of u and v together, inputs not counted: on a CPU of the resident size
of a fresh process, on an accelerator what the compiled program allocates there.
"""

import ctypes
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from table import Line

import qkjax
from qkjax.interaction import modes as ways
from qkjax.interaction.svd.cholesky_qr import cholesky_qr

SHAPES = {"S": (12, 384, 6, 64), "B": (12, 768, 12, 64), "L": (24, 1024, 16, 64), "H": (32, 1280, 16, 80)}
SAMPLED_HEADS = 4


def kernels(model: str) -> np.ndarray:
    """Random query and key kernels, (2, layers, embed, heads, head_dim)."""
    layers, embed, heads, head_dim = SHAPES[model]
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, layers, embed, heads, head_dim), dtype=np.float32)


def best(function: Callable, repeats: int = 5, before: int = 1) -> float:
    """Seconds of the fastest call, after one that compiles, or none."""
    for _ in range(before):
        jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


@jax.jit
def bare_products(query, key):
    factors = jnp.moveaxis(jnp.stack([query, key]), 3, 2)
    grams = jnp.einsum("...di,...dj->...ij", factors, factors, precision="highest")
    return jnp.einsum("...di,...ij->...dj", factors, grams, precision="highest")


def other_way(query, key):
    """Library QR and SVD of the factors, head by head in one program, on accelerators; on a CPU what these take."""
    return ways._decompose(query, key, None, False, False, lapack=not ways.by_lapack())


@jax.jit
def cores(query, key):
    """Rq Rk^T of all heads, (layers, heads, head_dim, head_dim)."""
    _, both = cholesky_qr(jnp.moveaxis(jnp.stack([query, key]), 3, 2))
    return jnp.matmul(both[0], jnp.swapaxes(both[1], -1, -2), precision="highest")


def numpy_factors(query, key):
    for layer in range(query.shape[0]):
        for head in range(query.shape[2]):
            qq, rq = np.linalg.qr(query[layer, :, head])
            qk, rk = np.linalg.qr(key[layer, :, head])
            left, _, right = np.linalg.svd(rq @ rk.T)
            qq @ left, qk @ right.T


def dense(svd: Callable, query, key) -> Callable:
    """A dense method on the first heads of layer 0, one after the other."""
    matrices = [query[0, :, h] @ key[0, :, h].T for h in range(SAMPLED_HEADS)]
    return lambda: [svd(m) for m in matrices]


def peak_memory(model: str) -> float:
    """Growth of the peak, in units of u and v."""
    if not ways.by_lapack():
        made = kernels(model)
        found = ways._decompose.lower(*made, None, False, False, lapack=False).compile().memory_analysis()
        return (found.temp_size_in_bytes + found.output_size_in_bytes) / made.nbytes  # u and v are of the kernels' size
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (model,))


def _peak_memory(model: str) -> float:
    query, key = (jnp.asarray(k) for k in kernels(model))
    jax.block_until_ready(qkjax.decompose(query, key))  # compiles; what the compiler takes is not ours
    jax.block_until_ready(jnp.zeros(1) + 1)  # jax gives up what nobody holds any more when it is called the next time
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory is used again and the growth is hidden
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    before = _status("VmRSS")
    modes = jax.block_until_ready(qkjax.decompose(query, key))
    return (_status("VmHWM") - before) / (modes.u.nbytes + modes.v.nbytes)


def _status(field: str) -> int:
    """A line of Linux's process status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) * 1024


def measure(model: str) -> dict[str, float]:
    """Seconds for all heads, by method."""
    query, key = kernels(model)
    layers, _, heads, _ = SHAPES[model]
    scale = layers * heads / SAMPLED_HEADS
    on_device = jnp.asarray(query), jnp.asarray(key)
    seconds = {
        "bare products": best(lambda: bare_products(*on_device)),
        "qkjax.decompose": best(lambda: qkjax.decompose(*on_device)),
        "numpy on factors": best(lambda: numpy_factors(query, key), 1),
        "numpy dense loop (the authors' way)": scale * best(dense(np.linalg.svd, query, key), 1),
        "the other platforms' way": best(lambda: other_way(*on_device), 1),
        "jnp.linalg.svd of the cores": best(partial(jax.jit(jnp.linalg.svd), cores(*on_device)), 1),
        "jax dense": scale * best(dense(jax.jit(jnp.linalg.svd), *on_device), 1),
    }
    try:
        import torch
    except ImportError:
        print("torch is not installed (parity extra): left out")
    else:
        place = "cuda" if torch.cuda.is_available() else "cpu"
        matrices = torch.from_numpy(np.stack(dense(np.asarray, query, key)())).to(place)
        seconds["torch dense, batched"] = scale * best(lambda: done(torch.linalg.svd(matrices)), 1)
    try:
        import torch
        from transformer_lens import FactoredMatrix
    except ImportError:
        print("transformer_lens is not installed (bench extra): left out")
    else:
        place = "cuda" if torch.cuda.is_available() else "cpu"
        a = torch.from_numpy(np.moveaxis(query, 2, 1).copy()).to(place)
        b = torch.from_numpy(np.moveaxis(key, 2, 1).swapaxes(-1, -2).copy()).to(place)
        done(FactoredMatrix(a[:1, :1], b[:1, :1]).svd())
        repeats = 5 if place == "cpu" else 1  # a minute on a GPU
        seconds["TransformerLens' FactoredMatrix.svd"] = best(lambda: done(FactoredMatrix(a, b).svd()), repeats, 0)
    return seconds


def done(tensors) -> tuple:
    """Waits until torch's device has made the tensors, as jax waits for its own."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return ()


def main(models: tuple[str, ...] = tuple(SHAPES)) -> list[Line]:
    """Prints a table per model: seconds, ratio to qkjax, ratio to the floor."""
    lines = []
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}\n")
    for model in models:
        layers, embed, heads, head_dim = SHAPES[model]
        flops = 8 * layers * heads * embed * head_dim**2
        seconds = measure(model)
        ours, floor = seconds["qkjax.decompose"], seconds["bare products"]
        print(f"ViT-{model}: {layers} x {heads} heads of {embed} x {head_dim}; floor {flops / 1e9:.1f} GFLOP")
        print("| method | seconds | times qkjax | times bare products |\n|---|---|---|---|")
        for name, value in seconds.items():
            label = f"{name}, x heads" if "dense" in name else name
            print(f"| {label} | {value:.3f} | {value / ours:.1f} | {value / floor:.1f} |")
            if name != "qkjax.decompose":
                lines.append(Line(f"modes of ViT-{model}", ours, label, value))
        if platform.system() == "Linux":
            print(f"peak memory: {peak_memory(model):.1f} times u and v\n", flush=True)
    return lines


if __name__ == "__main__":
    tyro.cli(main)
