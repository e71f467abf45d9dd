"""The programs of qkjax that run on accelerators, with the shapes of their arguments.

`benchmarks/ahead_of_time.py` compiles them. Each entry is a function without arguments that returns a jitted function
and its arguments as shapes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from shapes import SIDE, config_of, shape_of

import qkjax
from qkjax.activations.top_k import empty as no_images
from qkjax.activations.top_maps import empty
from qkjax.analyses.ablate.outputs import original_outputs
from qkjax.analyses.objects.compute import _step as objects_step
from qkjax.analyses.preference.compute import _step as preference_step
from qkjax.analyses.top_images.compute import MAPPED
from qkjax.analyses.top_images.compute import _step as scan_step
from qkjax.interaction.difference import _overlaps
from qkjax.interaction.edit import edit
from qkjax.interaction.metrics import _measure
from qkjax.interaction.modes import Modes, by_lapack, decompose
from qkjax.interaction.query_key import QueryKey
from qkjax.train.config import vit_config
from qkjax.train.model import initial
from qkjax.train.presets import PRESETS
from qkjax.train.step import begin, update
from qkjax.vit.model import _forward
from qkjax.vit.patches import query_places

BATCH, TOP, OBJECTS, QUERIES = 64, 9, 16, 16
TRAINED = 256
"""Images in a batch of training."""

Program = tuple[Callable, tuple]


def array(shape: tuple[int, ...], dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def modes(model: str) -> Modes:
    layers, embed, heads, head_dim, _ = shape_of(model)
    vectors = array((layers, heads, embed, head_dim))
    return Modes(vectors, array((layers, heads, head_dim)), vectors)


def params(config: qkjax.ViTConfig) -> dict:
    images = jnp.zeros((1, SIDE, SIDE, 3))
    return jax.eval_shape(lambda: qkjax.ViT(config).init(jax.random.key(0), images))["params"]


SCALING = (array((1, 1, 1, 3)),) * 2
PIXELS = array((BATCH, SIDE, SIDE, 3), jnp.uint8)
INDEX = array((BATCH,), jnp.int32)


def decomposition(model: str) -> Program:
    layers, embed, heads, head_dim, _ = shape_of(model)
    kernel = array((layers, embed, heads, head_dim))
    return jax.jit(decompose), (kernel, kernel)


def metrics(model: str) -> Program:
    return jax.jit(lambda m: _measure(m, by_lapack())), (modes(model),)


def bare(model: str, dtype: str) -> Program:
    """The forward pass alone, which is the floor of a scan."""
    vit = qkjax.ViT(config_of(model), dtype)
    run = jax.jit(lambda p, pixels: vit.apply({"params": p}, pixels.astype(jnp.float32) / 255)[0])
    return run, (params(vit.config), PIXELS)


def scan(model: str, dtype: str) -> Program:
    layers, _, heads, rank, patch = shape_of(model)
    state = jax.eval_shape(lambda: empty((1, layers, heads, rank), TOP, MAPPED, (SIDE // patch) ** 2))
    step = partial(scan_step, qkjax.ViT(config_of(model), dtype), stream="norm", scores=("product",))
    return jax.jit(step), (params(config_of(model)), modes(model), SCALING, state, PIXELS, INDEX)


def objects(model: str, dtype: str) -> Program:
    layers, _, heads, rank, patch = shape_of(model)
    state = jax.eval_shape(lambda: no_images((layers, heads, rank, 2), TOP))
    masks = array((BATCH, OBJECTS, (SIDE // patch) ** 2))
    step = partial(objects_step, qkjax.ViT(config_of(model), dtype), stream="norm")
    return jax.jit(step), (params(config_of(model)), modes(model), SCALING, state, PIXELS, masks, INDEX)


def preference(model: str) -> Program:
    patch = shape_of(model)[-1]
    regions = array((BATCH, 3, SIDE // patch, SIDE // patch))
    step = partial(preference_step, qkjax.ViT(config_of(model)))
    return jax.jit(step), (params(config_of(model)), SCALING, PIXELS, regions, array((BATCH,)))


def capture(model: str) -> Program:
    run = partial(_forward, qkjax.ViT(config_of(model)), capture=("norm", "attention", "residual"))
    return jax.jit(run), (params(config_of(model)), array((BATCH, SIDE, SIDE, 3)))


def ablation(model: str) -> Program:
    patch = shape_of(model)[-1]
    places = jax.tree.map(lambda x: array(np.shape(x), jnp.int32), query_places((SIDE // patch,) * 2, QUERIES))
    run = partial(original_outputs, qkjax.ViT(config_of(model)))
    return jax.jit(run), (params(config_of(model)), SCALING, PIXELS, places)


def edited(model: str, kind: str) -> Program:
    layers, embed, heads, head_dim, _ = shape_of(model)
    kernel, bias = array((layers, embed, heads, head_dim)), array((layers, heads, head_dim))
    norm = array((layers, embed))
    return jax.jit(lambda a, m, w: edit(a, m, kind, w)), (
        QueryKey(kernel, kernel, bias, bias, norm, norm),
        modes(model),
        array((layers, heads, head_dim)),
    )


def overlaps(model: str) -> Program:
    return jax.jit(_overlaps), (modes(model), modes(model))


def training(constraint: str, dtype: str) -> Program:
    """A step of ViT-S/16 on ImageNet."""
    config = replace(
        PRESETS["imagenet-s16"], constraint=constraint, batch=TRAINED, accumulate=1, dtype=dtype, mixup=0.0
    )
    vit = vit_config(config, (SIDE, SIDE, 3), 1000)
    tree = jax.eval_shape(lambda: initial(jax.random.key(0), vit, config.constraints(), bias=config.bias))
    state = jax.eval_shape(partial(begin, config), tree)
    step = jax.jit(partial(update, config, vit), donate_argnums=0)
    return step, (state, array((TRAINED, SIDE, SIDE, 3), jnp.uint8), array((TRAINED,), jnp.int32))


PROGRAMS: dict[str, Callable[[], Program]] = {
    **{f"decompose {m}": partial(decomposition, m) for m in "SBLHg"},
    **{f"measure {m}": partial(metrics, m) for m in "SBLH"},
    **{f"{f.__name__} {m} {d}": partial(f, m, d) for f in (bare, scan) for m in "SBL" for d in ("float32", "bfloat16")},
    "objects S bfloat16": partial(objects, "S", "bfloat16"),
    **{f"preference {m}": partial(preference, m) for m in "SL"},
    **{f"capture {m}": partial(capture, m) for m in "SL"},
    "ablate S": partial(ablation, "S"),
    **{f"edit {kind} S": partial(edited, "S", kind) for kind in ("drop", "symmetric")},
    "compare S": partial(overlaps, "S"),
    "train free float32": partial(training, "free", "float32"),
    **{
        f"train {name} bfloat16": partial(training, name, "bfloat16")
        for name in ("free", "pull(0.5)", "flat", "orthogonal", "antisymmetric")
    },
}
"""All programs by name."""
