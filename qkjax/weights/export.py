"""Writes checkpoints in the format of qkjax (`save`) and in the format of big_vision (`export`)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint


def save(checkpoint: Checkpoint, path: Path | str) -> None:
    """Writes a checkpoint to an npz file from which `load` reads it back without loss.

    The file contains the parameters in their dtypes, the architecture and the preprocessing. `load` names the
    checkpoint after the file. Use `export` for a file that big_vision reads.

    Args:
      checkpoint: the checkpoint.
      path: the file to write; must end in `.npz`.

    Raises:
      QkjaxError: `path` does not end in `.npz`, or cannot be written.

    Example:
      >>> import tempfile
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     qkjax.save(checkpoint, f"{folder}/copy.npz")
      ...     copy = qkjax.load(f"{folder}/copy.npz")
      >>> copy.name, copy.config == checkpoint.config
      ('copy', True)
    """
    if Path(path).suffix != ".npz":
        raise QkjaxError(f"path={str(path)!r}: expected a name that ends in .npz")
    write_checkpoint(path, checkpoint.config, checkpoint.params, checkpoint.preprocess, checkpoint.notes)


def export(checkpoint: Checkpoint, path: Path | str) -> list[str]:
    """Writes an npz file that both big_vision's `vit.load` and qkjax's `load` can read.

    Layer scale is multiplied into the preceding layer. The model then computes the same function up to rounding.

    Args:
      checkpoint: the checkpoint.
      path: the file to write; must end in `.npz`, because big_vision infers the format from the suffix.

    Returns:
      A list of sentences, each of which states a difference between big_vision's model and this checkpoint. The list is
      empty if both compute the same function.

    Raises:
      QkjaxError: the model has parts that big_vision's parameter tree lacks, or `path` cannot be written.

    Example:
      >>> import tempfile
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for note in qkjax.export(checkpoint, f"{folder}/dinov2.npz"):
      ...         print(note)
      big_vision's activation is GELU by its tanh approximation; this model's is gelu
      big_vision resamples position embeddings linearly; this model uses bicubic
    """
    config, path = checkpoint.config, Path(path)
    if path.suffix != ".npz":
        raise QkjaxError(f"path={str(path)!r}: expected a name that ends in .npz, as big_vision requires")
    if foreign := _foreign_parts(config):
        raise QkjaxError(
            f"{checkpoint.name} has {foreign[0]}, which big_vision's parameter tree lacks; use qkjax.save instead"
        )
    params = fold_layer_scale(checkpoint.params) if config.layer_scale else checkpoint.params
    write_checkpoint(path, replace(config, layer_scale=False), params, checkpoint.preprocess)
    notes = []
    if config.activation != "gelu_tanh":
        notes.append(f"big_vision's activation is GELU by its tanh approximation; this model's is {config.activation}")
    if config.norm_eps != 1e-6:
        notes.append(f"big_vision's LayerNorm epsilon is 1e-6; this model's is {config.norm_eps:g}")
    if config.posemb_resample != "linear":
        notes.append(f"big_vision resamples position embeddings linearly; this model uses {config.posemb_resample}")
    return notes


def fold_layer_scale(params: Mapping) -> dict:
    """Multiplies layer scale into the preceding layer. The model computes the same function up to rounding.

    Args:
      params: nested dict. The function scales the kernel (heads, head_dim, D) and the bias (D) of the output projection
        of attention, and the kernel (mlp, D) and the bias (D) of the MLP's second layer.
    """
    flat = dict(flatten_dict(params, sep="/"))
    for name in [n for n in flat if n.endswith("/scale") and "/LayerScale_" in n]:
        block, module, _ = name.rsplit("/", 2)
        last = "MultiHeadDotProductAttention_0/out" if module == "LayerScale_0" else "MlpBlock_0/Dense_1"
        scale = flat.pop(name)
        for part in ("kernel", "bias"):
            flat[f"{block}/{last}/{part}"] = flat[f"{block}/{last}/{part}"] * scale
    return unflatten_dict(flat, sep="/")


def _foreign_parts(config: ViTConfig) -> list[str]:
    """Lists the parts of the architecture that big_vision's model lacks."""
    parts = {
        "rotary positions": config.rotary,
        "extra tokens besides the class token": config.registers,
        "a class token that is not pooled": config.class_token and config.pool != "tok",
        "a LayerNorm before its first layer": config.pre_norm,
        "its last LayerNorm after the pooling": config.pool_norm,
        "relative position biases": config.relative_positions,
        "a gated MLP": config.activation == "swiglu",
        "RMSNorms": config.norm != "layer",
        "a norm of its patch embedding": config.patch_norm,
        "norms within attention and MLP": config.inner_norms,
        "no norm after its last layer": not config.final_norm,
        "only queries and keys": config.weights_only,
    }
    return [part for part, present in parts.items() if present]
