"""All rows in the order in which they are measured, the most important rows first."""

from collections.abc import Callable
from importlib import import_module
from typing import Literal, NamedTuple


class Row(NamedTuple):
    """A measurement.

    Attributes:
      name: name in the results.
      library: the library that the row's process imports: "jax" or "torch".
      seconds: what the row is expected to take on a GPU, with compilation. A row is not begun if less time is left.
      function: "module.function" in `benchmarks.gpu`.
      arguments: positional arguments of the function, which also takes `tiny`.
    """

    name: str
    library: Literal["jax", "torch"]
    seconds: float
    function: str
    arguments: tuple = ()

    def run(self, tiny: bool) -> dict:
        module, name = self.function.split(".")
        function: Callable = getattr(import_module(f"benchmarks.gpu.{module}"), name)
        return function(*self.arguments, tiny=tiny)


def _product(precision: str) -> Row:
    return Row(f"product, {precision}", "jax", 5, "ceilings.product", (precision,))


def _scan(model: str, dtype: str, batch: int, seconds: float) -> Row:
    return Row(f"scan ViT-{model} {dtype} batch {batch}", "jax", seconds, "forward.scan", (model, dtype, batch))


def _bare(model: str, dtype: str, batch: int) -> Row:
    return Row(f"forward ViT-{model} {dtype} batch {batch}", "jax", 15, "forward.bare", (model, dtype, batch))


def _timm(model: str, batch: int) -> Row:
    name = f"timm compiled forward ViT-{model} bfloat16 batch {batch}"
    return Row(name, "torch", 50, "torch_peers.forward", (model, batch))


def _decompose(model: str, seconds: float = 15) -> Row:
    return Row(f"decompose ViT-{model}", "jax", seconds, "decompositions.decompose", (model, None))


def _library(name: str, model: str, seconds: float = 10) -> Row:
    return Row(f"{name} of cores ViT-{model}", "jax", seconds, "decompositions.library", (name, model))


def _capture(model: str, seconds: float) -> Row:
    names = ("norm", "attention", "residual")
    return Row(f"capture {', '.join(names)} ViT-{model}", "jax", seconds, "forward.capture", (model, names))


def _train(constraint: str, batch: int) -> Row:
    return Row(f"train step {constraint} batch {batch}", "jax", 30, "training.step", (constraint, batch))


ROWS = (
    _product("bf16"),
    _product("float32 highest"),
    Row("copy", "jax", 3, "ceilings.copy"),
    _scan("S", "bfloat16", 64, 30),
    _scan("L", "bfloat16", 64, 45),
    _decompose("H", 20),
    _decompose("L"),
    _decompose("S"),
    _decompose("B"),
    Row("thin products ViT-H", "jax", 5, "decompositions.thin_products", ("H",)),
    _library("jnp.linalg.svd", "H"),
    _timm("S", 64),
    _timm("L", 64),
    *(Row(f"torch svd {d} of cores ViT-H", "torch", 10, "torch_peers.svd", (d, "H")) for d in ("gesvdj", "gesvda")),
    Row("torch svd gesvd of cores ViT-H", "torch", 20, "torch_peers.svd", ("gesvd", "H")),
    Row("FactoredMatrix.svd ViT-H", "torch", 20, "torch_peers.factored_matrix", ("H",)),
    _train("free", 256),
    Row("plain loop batch 256", "jax", 30, "training.plain_loop", (256,)),
    Row("top-images of JPEG files, ViT-S bfloat16", "jax", 40, "files.top_images", ("S", "bfloat16")),
    _scan("S", "float32", 64, 30),
    _bare("S", "bfloat16", 64),
    _bare("L", "bfloat16", 64),
    _bare("S", "float32", 64),
    Row("projections ViT-S", "jax", 10, "forward.projection", ("S", 64)),
    *(_library(name, "H") for name in ("svd POLAR", "svd JACOBI", "svd QR", "eigh JACOBI of the Gram matrices")),
    *(_product(name) for name in ("float32 default", "TF32x3", "BF16x3", "BF16x6")),
    Row("host to device", "jax", 3, "ceilings.transfer"),
    *(Row(f"measure ViT-{m}", "jax", 40, "decompositions.measure", (m,)) for m in "SL"),
    *(_train(name, 256) for name in ("pull(0.5)", "flat", "orthogonal", "antisymmetric")),
    _scan("L", "float32", 64, 45),
    _scan("S", "bfloat16", 256, 30),
    _timm("S", 256),
    *(Row(f"edit {kind} ViT-S", "jax", 20, "decompositions.edits", ("S", kind)) for kind in ("drop", "symmetric")),
    *(
        Row(f"decoding, {preset}", "jax", 15, "files.decoding", (preset,))
        for preset in ("hf-dinov2", "bigvision-small-crop")
    ),
    Row("decompose ViT-S, condition 1e4", "jax", 15, "decompositions.decompose", ("S", 1e4)),
    _decompose("g", 25),
    _train("free", 1024),
    _capture("S", 20),
    _capture("L", 30),
    Row("top-images of JPEG files, ViT-S float32", "jax", 40, "files.top_images", ("S", "float32")),
)  # fmt: skip
