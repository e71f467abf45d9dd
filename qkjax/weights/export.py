"""Writing checkpoints: ours, and big_vision's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint


def fold_layer_scale(params: Mapping) -> dict:
    """The same function without layer scale: the factor goes into the layer before it.

    attention out: kernel (heads, head_dim, D) and bias (D); MLP Dense_1: kernel (mlp, D), bias (D).
    """
    flat = dict(flatten_dict(params, sep="/"))
    for name in [n for n in flat if n.endswith("/scale") and "/LayerScale_" in n]:
        block, module, _ = name.rsplit("/", 2)
        last = "MultiHeadDotProductAttention_0/out" if module == "LayerScale_0" else "MlpBlock_0/Dense_1"
        scale = flat.pop(name)
        for part in ("kernel", "bias"):
            flat[f"{block}/{last}/{part}"] = flat[f"{block}/{last}/{part}"] * scale
    return unflatten_dict(flat, sep="/")


def export(checkpoint: Checkpoint, path: Path | str) -> list[str]:
    """Writes an npz that big_vision's `vit.load` reads into its own `Model`.

    Args:
      path: where; must end in `.npz`, by which big_vision knows the format.

    Returns:
      What big_vision's model will do otherwise than this one, a line each; empty when nothing.

    Raises:
      QkjaxError: the model has parts that big_vision's tree cannot hold, or `path` cannot be written.
    """
    config, path = checkpoint.config, Path(path)
    if path.suffix != ".npz":
        raise QkjaxError(f"{path} must end in .npz: big_vision knows the format by it")
    if foreign := _foreign_parts(config):
        raise QkjaxError(f"{checkpoint.name} has {foreign[0]}, for which big_vision's tree has no place")
    params = fold_layer_scale(checkpoint.params) if config.layer_scale else checkpoint.params
    write_checkpoint(path, replace(config, layer_scale=False), params, checkpoint.preprocess)
    notes = []
    if config.activation != "gelu_tanh":
        notes.append(f"big_vision's activation is GELU by tanh; this model was trained with {config.activation}")
    if config.norm_eps != 1e-6:
        notes.append(f"big_vision's LayerNorm epsilon is 1e-6; this model's is {config.norm_eps:g}")
    if config.posemb_resample != "linear":
        notes.append(
            f"big_vision resamples position embeddings linearly; this model does so by {config.posemb_resample}"
        )
    return notes


def _foreign_parts(config: ViTConfig) -> list[str]:
    parts = {
        "extra tokens beside the class token": config.registers,
        "a class token that is not pooled": config.class_token and config.pool != "tok",
        "a LayerNorm before its first layer": config.pre_norm,
        "its last LayerNorm behind the pooling": config.pool_norm,
        "relative position biases": config.relative_positions,
        "a gated MLP": config.activation == "swiglu",
    }
    return [what for what, is_there in parts.items() if is_there]
