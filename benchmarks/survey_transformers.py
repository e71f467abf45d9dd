"""What `qkjax.load` does with every vision transformer of transformers: exact, weights only, refused, or wrong.

    python benchmarks/survey_transformers.py               # all of them; a few minutes on two CPU cores
    python benchmarks/survey_transformers.py "clip*"       # some model types

A model counts as a vision transformer if its configuration has a patch size, a hidden size, layers and heads. Each is
built small, with random weights and every parameter moved away from its initial value, saved, and loaded. Exact: the
tokens before each layer and the last hidden state agree to 1e-5 of their range. Weights only: the singular values of
Wq Wk^T of every head agree with a float64 SVD.
"""

import fnmatch
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from survey import TOLERANCE, Verdict, distance, weights_verdict
from transformers_models import by_rows, inputs, save, small_model

import qkjax
from qkjax.errors import QkjaxError
from qkjax.vit.model import forward

OTHER_ATTENTION = re.compile(r"temporal|message_attn|vit_merger|downsample|assign|predictor|decoder")
"""Attention that is not that of the layers which qkjax reads."""
REQUIRED = ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def model_types() -> dict[str, type]:
    """The configuration class of every model type that has the sizes of a vision transformer."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return {name: kind for name, kind in CONFIG_MAPPING.items() if _is_vision_transformer(kind)}


def _is_vision_transformer(kind: type) -> bool:
    try:
        config = kind()
    except Exception:
        return False
    return all(getattr(config, name, None) is not None for name in REQUIRED)


def survey(name: str, kind: type) -> Verdict:
    """Saves and loads one model type."""
    model = small_model(name, kind)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        try:
            checkpoint = qkjax.load(folder)
        except QkjaxError as error:
            return Verdict(name, "refused", str(error).replace(folder, "").removeprefix(": "))
    if checkpoint.config.weights_only:
        return weights_verdict(name, checkpoint, list(_attention(model)))
    return _forward(name, checkpoint, model)


def _attention(model: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Query and key weights (out, in) of each layer, from the modules of the model."""
    for name, module in model.named_modules():
        query, key, fused = (_weight(module, names) for names in (("query", "q_proj"), ("key", "k_proj"), ("qkv",)))
        if OTHER_ATTENTION.search(name):
            continue
        if fused is not None:
            yield tuple(np.split(fused, 3)[:2])
        elif query is not None and key is not None:
            yield query, key


def _weight(module: Any, names: tuple[str, ...]) -> np.ndarray | None:
    layer = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    return None if getattr(layer, "weight", None) is None else layer.weight.detach().double().numpy()


def _forward(name: str, checkpoint: qkjax.Checkpoint, model: Any) -> Verdict:
    """Compares tokens before each layer, and the last hidden state or the pooled output.

    The last hidden state of CLIP's relatives in transformers has no last norm; their pooled output has.
    """
    import torch

    config = checkpoint.config
    grid = config.grid or (4, 4)
    pixels = [side * patch for side, patch in zip(grid, config.patch_size, strict=True)]
    images = torch.randn(1, 3, *pixels, generator=torch.Generator().manual_seed(1))
    output, ours = forward(qkjax.ViT(config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1), ("residual",))
    with torch.no_grad(), entering(model) as states:
        theirs = model(**inputs(name, images, config.patch_size))
    tokens = [distance(a, by_rows(name, b, 1, grid)) for a, b in zip(ours["residual"], states, strict=True)]
    last = getattr(theirs, "last_hidden_state", None)
    results = {"last hidden state": (ours["encoded"], None if last is None else by_rows(name, last, 1, grid)),
               "pooled output": (output, getattr(theirs, "pooler_output", None))}  # fmt: skip
    errors = {what: distance(a, b) for what, (a, b) in results.items() if b is not None}
    what, result = min(errors.items(), key=lambda item: item[1])
    worst = max(*tokens, result)
    return Verdict(name, "exact" if worst < TOLERANCE else "wrong", f"{worst:.0e} (tokens and {what})")


@contextmanager
def entering(model: Any) -> Iterator[list]:
    """Collects the input of every layer."""
    from torch import nn

    states: list = []
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential))
    layers = next(each for each in lists if all(type(one).__name__.endswith(("Layer", "Block")) for one in each))

    def keep(_, arguments: tuple, named: dict) -> None:
        states.append(arguments[0] if arguments else named["hidden_states"])

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    yield states
    for hook in hooks:
        hook.remove()


def main(patterns: list[str]) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    verdicts = []
    for name, kind in sorted(model_types().items()):
        if patterns and not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        try:
            verdicts.append(survey(name, kind))
        except Exception as error:
            verdicts.append(Verdict(name, "not built or not run", " ".join(repr(error).split())[:160]))
        print(*verdicts[-1], sep="  ", flush=True)
    print(f"transformers {transformers.__version__}:", dict(Counter(line.verdict for line in verdicts)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1:])
