"""Rows of alternatives in torch: timm's compiled forward pass, SVD by each driver, TransformerLens' FactoredMatrix.

They run in a process of their own, because jax and torch may load different versions of cuDNN.
"""

import numpy as np
import torch

from benchmarks.gpu.timing import IN_A_ROW, seconds_of
from benchmarks.shapes import config_of, forward_products, kernels_of, shape_of

MODELS = {"S": "vit_small_patch14_dinov2", "L": "vit_large_patch16_224"}
"""timm's models with the shapes of `benchmarks/shapes.py`."""
DRIVERS = ("gesvd", "gesvdj", "gesvda")
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 56}


def place() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The name that `jax.devices()[0].device_kind` has for the same device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def wait(_) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forward(model: str, batch: int, tiny: bool) -> dict:
    """The forward pass of a timm model in bfloat16, compiled with CUDA graphs; images are on the device."""
    import timm

    batch, shape = (4, TINY) if tiny else (batch, {})
    vit = timm.create_model(MODELS[model], img_size=224, num_classes=0, **shape).eval().to(place(), torch.bfloat16)
    images = torch.zeros(batch, 3, 224, 224, device=place(), dtype=torch.bfloat16)
    run = torch.compile(vit, backend="eager") if tiny else torch.compile(vit, mode="reduce-overhead")
    with torch.inference_mode():
        for _ in range(3):  # CUDA graphs are recorded in the first calls
            seconds_of(lambda: run(images), wait, 1)
        _, seconds = seconds_of(lambda: run(images), wait, in_a_row=IN_A_ROW)
    flop, size = 2 * batch * forward_products(config_of(model, tiny)), 2 * sum(p.numel() for p in vit.parameters())
    return {"img_s": batch / seconds, "ms": 1e3 * seconds, "flop": flop, "bytes": size + images.nbytes, "unit": "bf16"}


def svd(driver: str, model: str, tiny: bool) -> dict:
    """`torch.linalg.svd` of matrices with the shape of the cores of all heads, without the QR of the kernels."""
    layers, _, heads, head_dim, _ = shape_of(model, tiny)
    matrices = np.random.default_rng(0).standard_normal((layers * heads, head_dim, head_dim), dtype=np.float32)
    matrices = torch.from_numpy(matrices).to(place())
    chosen = driver if torch.cuda.is_available() else None  # a CPU has one driver
    run = lambda: torch.linalg.svd(matrices, full_matrices=False, driver=chosen)  # noqa: E731
    _, seconds = seconds_of(run, wait, 3)
    return {"ms": 1e3 * seconds}


def factored_matrix(model: str, tiny: bool) -> dict:
    """TransformerLens' SVD of all heads from their factors."""
    from transformer_lens import FactoredMatrix

    query, key = np.moveaxis(kernels_of(model, tiny), 3, 2)
    a, b = (torch.from_numpy(x.copy()).to(place()) for x in (query, np.swapaxes(key, -1, -2)))
    run = lambda: FactoredMatrix(a, b).svd()  # noqa: E731
    _, seconds = seconds_of(run, wait, 2)
    return {"ms": 1e3 * seconds}
