"""What `qkjax.load` does with every vision transformer of transformers: exact, weights only, refused, or wrong.

    python benchmarks/survey_transformers.py               # all of them; a few minutes on two CPU cores
    python benchmarks/survey_transformers.py "clip*"       # some model types

A model counts as a vision transformer if its configuration has a patch size, a hidden size, layers and heads. Each is
built small, with random weights and every parameter moved away from its initial value, saved, and loaded. Exact: the
tokens before each layer and the last hidden state agree to 1e-5 of their range. Weights only: the singular values of
Wq Wk^T of every head agree with a float64 SVD.
"""

import fnmatch
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from survey import TOLERANCE, Verdict, distance, moved, weights_verdict

import qkjax
from qkjax.errors import QkjaxError
from qkjax.vit.model import forward

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "image_size": 28,
         "patch_size": 7, "num_patches": 16}  # fmt: skip
SPECIAL = {
    "audio-spectrogram-transformer": {"max_length": 32, "num_mel_bins": 32},
    "beit": {"use_relative_position_bias": True},
    "data2vec-vision": {"use_relative_position_bias": True},
    "dpt": {"backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 8, 8, 8]},
    "eomt": {"num_blocks": 1, "num_queries": 3},
    "sam_vision_model": {"output_channels": 8, "window_size": 2, "global_attn_indexes": [1]},
    "seggpt": {"image_size": [56, 28], "pretrain_image_size": 28, "merge_index": 0,
               "intermediate_hidden_state_indices": [0, 1]},
    "videomae": {"num_frames": 4},
    "vit_mae": {"mask_ratio": 0.0, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 16,
                "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16},
    "vitdet": {"window_size": 2, "window_block_indices": [0], "use_relative_position_embeddings": True},
    "vivit": {"tubelet_size": [2, 7, 7], "num_frames": 4},
}  # fmt: skip
"""What some model types need besides small sizes."""
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


def small_model(name: str, kind: type) -> Any:
    """A small random model of a configuration class."""
    import torch

    default = kind()
    sizes = {key: _alike(value, getattr(default, key)) for key, value in SMALL.items() if hasattr(default, key)}
    config = kind(**{**sizes, **SPECIAL.get(name, {})})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return moved(_model_class(kind)(config))


def _model_class(kind: type) -> type:
    """The class of a configuration's base model."""
    from transformers import MODEL_MAPPING, PreTrainedModel

    if kind in MODEL_MAPPING:
        return MODEL_MAPPING[kind]
    module = import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, PreTrainedModel)
    ]
    own = [model for model in classes if model.config_class is kind and not model.__name__.endswith("PreTrainedModel")]
    return max(own, key=lambda model: model.__name__.endswith(("Model", "Transformer", "Encoder", "Backbone")))


def _alike(value: int, default: Any) -> Any:
    """The value as a list if the default is one."""
    return [value] * len(default) if isinstance(default, list | tuple) else value


def survey(name: str, kind: type) -> Verdict:
    """Saves and loads one model type."""
    model = small_model(name, kind)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            checkpoint = qkjax.load(folder)
        except QkjaxError as error:
            return Verdict(name, "refused", str(error).replace(folder, "").removeprefix(": "))
    if checkpoint.config.weights_only:
        return weights_verdict(name, checkpoint, list(_attention(model)))
    return _forward(name, checkpoint, model)


def _attention(model: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Query and key weights (out, in) of each layer, from the modules of the model."""
    for _, module in model.named_modules():
        query, key, fused = (_weight(module, names) for names in (("query", "q_proj"), ("key", "k_proj"), ("qkv",)))
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
    pixels = [side * patch for side, patch in zip(config.grid or (4, 4), config.patch_size, strict=True)]
    images = torch.randn(1, 3, *pixels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(**_inputs(name, images, config), output_hidden_states=True)
    nhwc = images.numpy().transpose(0, 2, 3, 1)
    output, ours = forward(qkjax.ViT(config), checkpoint.params, nhwc, ("residual",))
    tokens = [distance(a, b) for a, b in zip(ours["residual"], theirs.hidden_states[: config.depth], strict=True)]
    results = {"last hidden state": (ours["encoded"], theirs.last_hidden_state),
               "pooled output": (output, getattr(theirs, "pooler_output", None))}  # fmt: skip
    errors = {what: distance(a, b) for what, (a, b) in results.items() if b is not None}
    what, result = min(errors.items(), key=lambda item: item[1])
    worst = max(*tokens, result)
    return Verdict(name, "exact" if worst < TOLERANCE else "wrong", f"{worst:.0e} (tokens and {what})")


def _inputs(name: str, images: Any, config: qkjax.ViTConfig) -> dict:
    """The arguments of a model: pixels, or the patches of NaFlex; for MAE, also an order of patches that keeps them."""
    import torch

    (height, width), (rows, columns) = config.patch_size, config.grid
    if name == "vit_mae":
        return {"pixel_values": images, "noise": torch.arange(rows * columns, dtype=torch.float32)[None]}
    if name != "siglip2_vision_model":
        return {"pixel_values": images}
    patches = images.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 4, 5, 1)
    return {
        "pixel_values": patches.reshape(1, rows * columns, -1),
        "pixel_attention_mask": torch.ones(1, rows * columns, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[rows, columns]]),
    }


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
