"""Constraints on the query-key interaction of a layer, as parametrisations of its kernels.

Each turns a layer's own parameters into plain query and key kernels that satisfy it exactly, whatever
the parameters are; so it holds at every step of any optimiser, and in what is exported. (The paper
trains nothing; this is an extension of ours.) Letters: D embed, H heads, d head_dim. With
M = Wq Wk^T of a head:

    free           Wq, Wk                          no constraint
    tied           Wk = Wq                         M symmetric, positive: every cosine +1
    repulsive      Wk = -Wq                        M symmetric, negative: every cosine -1
    symmetric      Wk = Wq S, S = S^T              M symmetric: every cosine +1 or -1
    antisymmetric  Wk = Wq A, A = -A^T             M = -M^T: every cosine 0
    orthogonal     Wk without its part in span Wq  every cosine 0, not antisymmetric
    low_rank(r)    r columns, the others 0         rank r
    flat           orthonormal columns, one s      all d singular values of a head equal
    diagonal       d coordinates of the embedding  M diagonal: features as they are, cosines +-1
    identity       the same                        M one strength times the identity on them
    frozen         Wq, Wk as they were drawn       no gradient
    pull(c)        Wq, Wk                          soft: a penalty pulls the weighted cosine to c

u . v is 0 for an antisymmetric M since v = M^T u / s and u^T M u = 0.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError, nearest

Kernel = Float[Array, "embed heads head_dim"]
Parameters = Mapping[str, Array]
Shape = tuple[int, int, int]  # embed, heads, head_dim
dot = partial(jnp.einsum, precision="highest")


class Constraint(NamedTuple):
    """A parametrisation of the query and key kernels of one layer.

    Attributes:
      init: random parameters, from a key and the kernels' shape; entries of the kernels have the
        variance that big_vision's Xavier initialisation gives them, where that is free to choose.
      kernels: query and key kernel from the parameters and the kernels' shape.
    """

    init: Callable[[Array, Shape], dict[str, Array]]
    kernels: Callable[[Parameters, Shape], tuple[Kernel, Kernel]]


def _xavier(key: Array, shape: Shape, columns: int | None = None) -> Kernel:
    """Uniform, of variance 2 / (D + H d), as big_vision's query and key kernels; `columns` of d are drawn."""
    embed, heads, head_dim = shape
    bound = np.sqrt(6 / (embed + heads * head_dim))
    return jax.random.uniform(key, (embed, heads, columns or head_dim), minval=-bound, maxval=bound)


def _pair(key: Array, shape: Shape, columns: int | None = None) -> dict[str, Array]:
    query, other = jax.random.split(key)
    return {"query": _xavier(query, shape, columns), "key": _xavier(other, shape, columns)}


def _mixed(key: Array, shape: Shape, mix: np.ndarray) -> dict[str, Array]:
    return {
        "query": _xavier(key, shape),
        "mix": jnp.broadcast_to(jnp.asarray(mix, jnp.float32), (shape[1], *mix.shape)),
    }


def _mix(parameters: Parameters, sign: int) -> tuple[Kernel, Kernel]:
    """Wk = Wq (B + B^T) / 2 for sign 1, Wq (B - B^T) / 2 for -1."""
    query, mix = parameters["query"], parameters["mix"]
    return query, dot("dhk,hkm->dhm", query, (mix + sign * jnp.swapaxes(mix, 1, 2)) / 2)


def _alternating(head_dim: int) -> np.ndarray:
    """Signs for half of the modes each."""
    return np.diag(np.where(np.arange(head_dim) % 2, -1.0, 1.0))


def _turning(head_dim: int) -> np.ndarray:
    """B with (B - B^T) / 2 orthogonal: quarter turns in planes of two coordinates (an odd last one rests)."""
    turn = np.zeros((head_dim, head_dim))
    first = np.arange(0, head_dim - 1, 2)
    turn[first, first + 1] = 2.0
    return turn


def _orthogonal(parameters: Parameters, _: Shape) -> tuple[Kernel, Kernel]:
    query, key = parameters["query"], parameters["key"]
    basis, _ = jnp.linalg.qr(jnp.moveaxis(query, 1, 0))
    for _ in range(2):  # what rounding leaves of the part after once is taken out too
        key = key - dot("hdm,hem,ehk->dhk", basis, basis, key)
    return query, key


def _flat(parameters: Parameters, _: Shape) -> tuple[Kernel, Kernel]:
    # One stacked QR: two independent batched ones in a program can deadlock XLA on CPUs with few cores.
    bases, cores = jnp.linalg.qr(jnp.moveaxis(jnp.stack([parameters["query"], parameters["key"]]), 2, 1))
    # LAPACK chooses signs; with a positive diagonal of R, orthonormal columns are their own basis.
    signs = jnp.where(jnp.diagonal(cores, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    query, key = jnp.moveaxis(bases * signs[..., None, :], 1, 2)
    return query, key * parameters["strength"][None, :, None]


def coordinates(shape: Shape) -> Float[np.ndarray, "embed heads head_dim"]:
    """For each head d coordinates of the embedding, as columns of 0 and 1: side by side, from the start
    again where they run out."""
    embed, heads, head_dim = shape
    chosen = np.arange(heads * head_dim).reshape(heads, head_dim) % embed
    return np.moveaxis(np.eye(embed, dtype=np.float32)[chosen], 2, 0)


def _padded(kernel: Float[Array, "embed heads columns"], shape: Shape) -> Kernel:
    return jnp.pad(kernel, ((0, 0), (0, 0), (0, shape[2] - kernel.shape[2])))


def low_rank(columns: int) -> Constraint:
    """Kernels of which only the first `columns` columns are not 0."""

    def init(key: Array, shape: Shape) -> dict[str, Array]:
        if columns > shape[2]:
            raise QkjaxError(
                f"low_rank({columns}) is more than the {shape[2]} columns of a head: choose a smaller rank"
            )
        return _pair(key, shape, columns)

    return Constraint(init, lambda p, shape: (_padded(p["query"], shape), _padded(p["key"], shape)))


CONSTRAINTS = {
    "free": Constraint(_pair, lambda p, shape: (p["query"], p["key"])),
    "tied": Constraint(lambda key, shape: {"query": _xavier(key, shape)}, lambda p, shape: (p["query"], p["query"])),
    "repulsive": Constraint(
        lambda key, shape: {"query": _xavier(key, shape)}, lambda p, shape: (p["query"], -p["query"])
    ),
    "symmetric": Constraint(lambda key, shape: _mixed(key, shape, _alternating(shape[2])), lambda p, shape: _mix(p, 1)),
    "antisymmetric": Constraint(
        lambda key, shape: _mixed(key, shape, _turning(shape[2])), lambda p, shape: _mix(p, -1)
    ),
    "orthogonal": Constraint(_pair, _orthogonal),
    "flat": Constraint(lambda key, shape: {**_pair(key, shape), "strength": jnp.ones(shape[1])}, _flat),
    "diagonal": Constraint(
        lambda key, shape: {"strength": jnp.ones(shape[1:])},
        lambda p, shape: (jnp.asarray(coordinates(shape)), coordinates(shape) * p["strength"][None]),
    ),
    "identity": Constraint(
        lambda key, shape: {"strength": jnp.ones(shape[1])},
        lambda p, shape: (jnp.asarray(coordinates(shape)), coordinates(shape) * p["strength"][None, :, None]),
    ),
    "frozen": Constraint(_pair, lambda p, shape: tuple(jax.lax.stop_gradient((p["query"], p["key"])))),
}
"""By name; `low_rank(r)` and `pull(c)` take a number."""


def constraint(name: str) -> Constraint:
    """A constraint by its name, such as "tied" or "low_rank(8)".

    Raises:
      QkjaxError: there is none of this name; says the nearest.
    """
    if rank(name):
        return low_rank(rank(name))
    if target(name) is not None:
        return CONSTRAINTS["free"]
    if name not in CONSTRAINTS:
        known = (*CONSTRAINTS, "low_rank(8)", "pull(0.5)")
        raise QkjaxError(f"there is no constraint {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return CONSTRAINTS[name]


def rank(name: str) -> int:
    """The rank of the constraint low_rank(r); 0 for all others."""
    match = re.fullmatch(r"low_rank\(([1-9]\d*)\)", name)
    return int(match[1]) if match else 0


def target(name: str) -> float | None:
    """The weighted cosine to which the constraint pull(c) pulls a layer; None for all other constraints.

    Raises:
      QkjaxError: it is no cosine.
    """
    match = re.fullmatch(r"pull\((-?\d*\.?\d+)\)", name)
    if match and abs(float(match[1])) > 1:
        raise QkjaxError(f"{name} pulls to {match[1]}, and a cosine is from -1 to 1")
    return float(match[1]) if match else None


def schedule(text: str, depth: int) -> tuple[str, ...]:
    """The name of each layer's constraint, from "0-3:tied 4-7:free"; one name alone is for all layers.

    Raises:
      QkjaxError: not of this form, an unknown constraint, a layer without one, with two, or not there.
    """
    if ":" not in text:
        constraint(text)
        return (text,) * depth
    names: dict[int, str] = {}
    for part in text.split():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?:(\S+)", part)
        if not match:
            raise QkjaxError(f"{part!r} is no part of a schedule; wanted are parts such as 0-3:tied or 4:free")
        constraint(match[3])
        for layer in range(int(match[1]), int(match[2] or match[1]) + 1):
            if layer >= depth or layer in names:
                what = "is not there" if layer >= depth else "has two constraints"
                raise QkjaxError(f"layer {layer} of the schedule {text!r} {what}: the model has {depth}, from 0")
            names[layer] = match[3]
    if missing := sorted(set(range(depth)) - set(names)):
        raise QkjaxError(f"the schedule {text!r} leaves layer {missing[0]} without a constraint; say free for none")
    return tuple(names[layer] for layer in range(depth))
