"""How fast checkpoints load and what memory it takes, for a ViT-L of random weights.

    python benchmarks/load.py

Writes 1.2 GB as big_vision's npz and as timm-named safetensors into a temporary folder, and loads each in
a fresh process. The floor is a plain read of the file's bytes. Memory is the growth of the peak
resident size while loading, in units of the file's size; every parameter is also checked for NaN.
"""

import ctypes
import multiprocessing
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from decompose import _status
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from table import Line

import qkjax
from qkjax.weights.families.architecture import expected_shapes
from qkjax.weights.formats.npz import write_npz

CONFIG = qkjax.ViTConfig(
    width=1024, depth=24, heads=16, head_dim=64, mlp_dim=4096, patch_size=(16, 16), grid=(14, 14), pool="tok",
    class_token=True, classes=1000,
)  # fmt: skip


def tree() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in expected_shapes(CONFIG).items()}


def timm_names(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same parameters under timm's names, query, key and value fused."""
    state = {
        "cls_token": flat["cls"],
        "pos_embed": np.concatenate([np.zeros((1, 1, 1024), np.float32), flat["pos_embedding"]], 1),
        "patch_embed.proj.weight": flat["embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": flat["embedding/bias"],
        "norm.weight": flat["Transformer/encoder_norm/scale"],
        "norm.bias": flat["Transformer/encoder_norm/bias"],
        "head.weight": flat["head/kernel"].T,
        "head.bias": flat["head/bias"],
    }
    for i in range(24):
        block, mha = f"Transformer/encoderblock_{i}", f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0"
        parts = [flat[f"{mha}/{x}/kernel"].reshape(1024, 1024).T for x in ("query", "key", "value")]
        biases = [flat[f"{mha}/{x}/bias"].reshape(1024) for x in ("query", "key", "value")]
        state |= {
            f"blocks.{i}.attn.qkv.weight": np.concatenate(parts),
            f"blocks.{i}.attn.qkv.bias": np.concatenate(biases),
            f"blocks.{i}.attn.proj.weight": flat[f"{mha}/out/kernel"].reshape(1024, 1024).T,
            f"blocks.{i}.attn.proj.bias": flat[f"{mha}/out/bias"],
        }
        for n in (0, 1):
            state[f"blocks.{i}.norm{n + 1}.weight"] = flat[f"{block}/LayerNorm_{n}/scale"]
            state[f"blocks.{i}.norm{n + 1}.bias"] = flat[f"{block}/LayerNorm_{n}/bias"]
            state[f"blocks.{i}.mlp.fc{n + 1}.weight"] = flat[f"{block}/MlpBlock_0/Dense_{n}/kernel"].T
            state[f"blocks.{i}.mlp.fc{n + 1}.bias"] = flat[f"{block}/MlpBlock_0/Dense_{n}/bias"]
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def load_once(path: Path) -> tuple[float, float, float]:
    """Seconds of a plain read, seconds of `load`, growth of the peak memory in bytes; in its own process."""
    expected_shapes(CONFIG)  # jax starts up and traces once
    start = time.perf_counter()
    for name in [path] if path.is_file() else path.iterdir():
        with open(name, "rb") as file:
            while file.read(1 << 24):
                pass
    plain = time.perf_counter() - start
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.perf_counter()
    settings = {"heads": CONFIG.heads} if path.suffix == ".safetensors" else {}  # which timm's names do not state
    checkpoint = qkjax.load(path, **settings)
    seconds = time.perf_counter() - start
    assert len(flatten_dict(checkpoint.params)) >= len(expected_shapes(CONFIG)) - 2  # some have no head
    return plain, seconds, _status("VmHWM") - before


def numpy_once(path: Path) -> float:
    """Seconds in which numpy reads every array of an npz: what big_vision's reader does, before it names them."""
    start = time.perf_counter()
    with np.load(path) as file:
        assert all(file[name].size for name in file)
    return time.perf_counter() - start


def transformers_once(folder: Path) -> float:
    """Seconds of transformers' from_pretrained, with every parameter read (it maps the file into memory)."""
    from transformers import ViTModel

    start = time.perf_counter()
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    assert all(bool(x.isfinite().all()) for x in model.state_dict().values())
    return time.perf_counter() - start


def save_for_transformers(folder: Path) -> bool:
    """Writes a ViT-L as transformers keeps it; False where that is not installed."""
    try:
        from transformers import ViTConfig, ViTModel
    except ImportError:
        print("torch or transformers is not installed (bench extra): left out")
        return False
    shapes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    ViTModel(ViTConfig(**shapes), add_pooling_layer=False).save_pretrained(folder)
    return True


def main() -> list[Line]:
    print(f"Python {platform.python_version()}, jax {jax.__version__}, numpy {np.__version__}")
    print("| file | GB | plain read, s/GB | load, s/GB | peak memory / file |\n|---|---|---|---|---|")
    lines = []
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        flat = tree()
        npz, safe = Path(folder) / "vit_l.npz", Path(folder) / "vit_l.safetensors"
        write_npz(npz, flat)
        save_file(timm_names(flat), safe)
        for path in (npz, safe):
            gigabytes = path.stat().st_size / 1e9
            plain, seconds, memory = pool.apply(load_once, (path,))
            print(f"| {path.name} | {gigabytes:.2f} | {plain / gigabytes:.2f} | {seconds / gigabytes:.2f} "
                  f"| {memory / gigabytes / 1e9:.2f} |")  # fmt: skip
            lines.append(Line(f"ViT-L from {path.suffix}", seconds, "plain read (floor)", plain))
        lines.append(Line("ViT-L from .npz", lines[0].ours, "numpy.load of all arrays", pool.apply(numpy_once, (npz,))))
        theirs = Path(folder) / "transformers"
        if save_for_transformers(theirs):
            _, ours, _ = pool.apply(load_once, (theirs,))
            other = pool.apply(transformers_once, (theirs,))
            lines.append(Line("ViT-L in transformers' layout", ours, "transformers' from_pretrained, all read", other))
    return lines


if __name__ == "__main__":
    main()
