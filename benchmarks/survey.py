"""What `qkjax.load` does with every ViT of timm: exact, weights only, refused, or wrong.

    python benchmarks/survey.py                      # all of them; about half an hour on two CPU cores
    python benchmarks/survey.py "vit_base_*"           # some
    python benchmarks/survey.py architectures        # writes qkjax/weights/families/timm_architectures.json

Each model is built by timm with one layer and random weights, every parameter moved away from its
initial value, saved with its config.json, and loaded. Exact: the tokens after each layer and the output agree to 1e-5
of their range. Weights only: the singular values of Wq Wk^T of every head agree.
"""

import fnmatch
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import qkjax
from qkjax.errors import QkjaxError
from qkjax.weights.families import timm as timm_config
from qkjax.weights.families.timm_module import facts_of

MODULES = ("vision_transformer", "deit", "beit", "eva", "vision_transformer_relpos", "vision_transformer_sam",
           "vision_transformer_hybrid", "naflexvit")  # fmt: skip
TABLE = Path(__file__).parents[1] / "qkjax/weights/families/timm_architectures.json"
TOLERANCE = 1e-5


class Verdict(NamedTuple):
    """What became of one model."""

    name: str
    verdict: str
    detail: str


def timm_names() -> list[str]:
    """Every architecture of timm that is built of a vision transformer's layers."""
    import timm
    from timm.models._registry import _model_to_module

    return sorted(name for name in timm.list_models() if _model_to_module[name] in MODULES)


def moved(model: Any) -> Any:
    """The model with every parameter moved away from its initial value."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.nan_to_num() + 0.05 * torch.randn_like(parameter))
    return model.eval()


def small_timm(name: str) -> tuple[Any, dict]:
    """A model of one layer, and the arguments that make it so."""
    import timm

    for arguments in ({"depth": 1}, {}):
        try:
            return moved(timm.create_model(name, **arguments)), arguments
        except TypeError:
            continue
    raise QkjaxError(f"cannot build {name}")


def survey_timm(name: str) -> Verdict:
    """Saves and loads one architecture of timm. One that its config.json suffices to refuse is not built."""
    from safetensors.torch import save_file

    if refusal := config_refusal({"architecture": name}):
        return Verdict(name, "refused", refusal)
    model, arguments = small_timm(name)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(tensors, Path(folder) / "model.safetensors")
        size = model.pretrained_cfg.get("input_size", (3, 224, 224))
        config = {"architecture": name, "model_args": arguments, "num_classes": model.num_classes,
                  "pretrained_cfg": {"input_size": size}}  # fmt: skip
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return verdict(name, lambda: qkjax.load(folder), model, size[1:], lambda: _timm_attention(model))


def config_refusal(config: dict) -> str:
    """Why qkjax refuses a config.json of timm; "" if it does not."""
    try:
        timm_config.facts_of(config)
    except QkjaxError as error:
        return str(error)
    return ""


def _timm_attention(model: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    for block in model.blocks:
        if getattr(block.attn, "qkv", None) is not None:
            query, key, _ = np.split(block.attn.qkv.weight.detach().double().numpy(), 3)
        else:
            query, key = (getattr(block.attn, f"{x}_proj").weight.detach().double().numpy() for x in "qk")
        pairs.append((query, key))
    return pairs


def verdict(name: str, load: Callable, model: Any, pixels: tuple[int, int], attention: Callable) -> Verdict:
    """Compares a loaded model with the one that was saved."""
    try:
        checkpoint = load()
    except QkjaxError as error:
        return Verdict(name, "refused", str(error).partition(": ")[2] or str(error))
    if checkpoint.config.weights_only:
        return weights_verdict(name, checkpoint, attention())
    return _forward(name, checkpoint, model, pixels)


def weights_verdict(name: str, checkpoint: qkjax.Checkpoint, pairs: list) -> Verdict:
    modes, heads = qkjax.decompose(checkpoint), checkpoint.config.heads
    worst = 0.0
    for layer, (query, key) in enumerate(pairs):
        for head, (q, k) in enumerate(zip(np.split(query, heads), np.split(key, heads), strict=True)):
            values = np.linalg.svd(q.T @ k, compute_uv=False)[: len(q)]
            worst = max(worst, np.abs(np.asarray(modes.s[layer, head]) - values).max() / values.max())
    reason = checkpoint.config.weights_only
    return Verdict(name, "weights only" if worst < TOLERANCE else "wrong", f"{reason} ({worst:.0e})")


def _forward(name: str, checkpoint: qkjax.Checkpoint, model: Any, pixels: tuple[int, int]) -> Verdict:
    import torch

    images = torch.randn(1, 3, *pixels, generator=torch.Generator().manual_seed(1))
    tokens: list[Any] = []
    hooks = [block.register_forward_hook(lambda _, __, out: tokens.append(out)) for block in model.blocks]
    with torch.no_grad():
        output = model(images)
    for hook in hooks:
        hook.remove()
    ours, captured = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1), ("residual",))
    pairs = [(captured["residual"][i + 1], token) for i, token in enumerate(tokens[:-1])]
    pairs.append((ours, output[0] if isinstance(output, tuple) else output))
    worst = max(distance(np.asarray(a), b.detach().numpy()) for a, b in pairs)
    return Verdict(name, "exact" if worst < TOLERANCE else "wrong", f"{worst:.0e}")


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest value; infinite for different shapes."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return np.inf
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def write_architectures() -> None:
    """Writes what timm's modules say of each architecture."""
    import timm
    import torch

    lines = []
    for name in timm_names():
        with torch.device("meta"):
            lines.append(f"{json.dumps(name)}: {json.dumps(facts_of(timm.create_model(name)))}")
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(patterns: list[str]) -> None:
    warnings.filterwarnings("ignore")
    if patterns == ["architectures"]:
        write_architectures()
        return
    names = [name for name in timm_names() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]
    verdicts = []
    for name in names:
        try:
            verdicts.append(survey_timm(name))
        except Exception as error:
            verdicts.append(Verdict(name, "failed", repr(error)[:200]))
        print(*verdicts[-1], sep="  ", flush=True)
    print(Counter(line.verdict for line in verdicts))


if __name__ == "__main__":
    main(sys.argv[1:])
