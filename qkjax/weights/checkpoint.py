"""A checkpoint in memory, functions that store it as an npz file, and a hash of its parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from html import escape
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Preprocess
from qkjax.runtime.parsed import from_json
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary_config import Rotary
from qkjax.vit.windows import described_windows
from qkjax.weights.formats.npz import write_npz

CONFIG_KEY, PREPROCESS_KEY, NOTES_KEY = "qkjax/config", "qkjax/preprocess", "qkjax/notes"
OWN_KEYS = (CONFIG_KEY, PREPROCESS_KEY, NOTES_KEY)
"""Names of the JSON members in npz files that qkjax writes."""


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A vision transformer in memory: its architecture, its parameters, and the preprocessing of its images.

    The `repr` of a checkpoint is a few lines of text, and notebooks show a table. Both compute `digest_of_parameters`,
    which takes about a second per GB of parameters.

    Attributes:
      name: catalogue name, or the name of the file.
      config: the architecture.
      params: nested dict of numpy arrays, which is the parameter tree of `big_vision.models.vit.Model`. The dtypes are
        those of the file (bfloat16 as `ml_dtypes.bfloat16`).
      source: path of the file or folder from which the checkpoint was read.
      preprocess: preprocessing of images at the model's own resolution. `load` reads it from processor_config.json or
        preprocessor_config.json, from timm's config.json, or from qkjax's own npz. If these files lack a value, the
        catalogue's entry or else the model family determines the value, and a note states this.
      notes: sentences that state what `load` assumed, overruled or left out. Results store these notes.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> checkpoint.config.depth, checkpoint.config.heads, checkpoint.config.width
      (12, 6, 384)
      >>> checkpoint.params["embedding"]["kernel"].shape
      (14, 14, 3, 384)
      >>> checkpoint.preprocess.crop
      224
    """

    name: str
    config: ViTConfig
    params: dict
    source: str
    preprocess: Preprocess
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        architecture = "; ".join(f"{name}: {value}" for name, value in _architecture(self.config).items())
        lines = {
            "source": self.source,
            "architecture": architecture,
            "parameters": f"{_parameter_count(self.params):,}",
            "digest": digest_of_parameters(self.params),
        }
        return "\n".join([f"Checkpoint {self.name!r}", *(f"  {name}: {value}" for name, value in lines.items())])

    def _repr_html_(self) -> str:
        """A table for notebooks: name, source, architecture, number of parameters, digest."""
        rows = {
            "source": self.source,
            **_architecture(self.config),
            "parameters": f"{_parameter_count(self.params):,}",
            "digest": digest_of_parameters(self.params),
        }
        cells = "".join(
            f'<tr style="text-align: left"><th>{escape(name)}</th><td>{escape(value)}</td></tr>'
            for name, value in rows.items()
        )
        return f"<table><caption>Checkpoint <b>{escape(self.name)}</b></caption>{cells}</table>"


def origin_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The attributes of a result that describe its model: the model's name, and what `load` assumed."""
    notes = {"assumptions": json.dumps(list(checkpoint.notes))} if checkpoint.notes else {}
    return {"model": checkpoint.name, **notes}


def _architecture(config: ViTConfig) -> dict[str, str]:
    """A dict from the name of each part of the architecture to a description."""
    other = {
        "class token": config.class_token,
        f"{config.registers} registers": config.registers,
        "layer scale": config.layer_scale,
        "LayerNorm before the first layer": config.pre_norm,
        "LayerNorm after the pooling": config.pool_norm,
        "relative position biases": config.relative_positions,
        "rotary positions": config.rotary is not None,
        described_windows(config): config.window > 0,
        f"{config.classes} classes": config.classes,
    }
    if config.weights_only:
        return {
            "layers": f"{config.depth} with {config.heads} heads each",
            "width": f"{config.width}, {config.head_dim} per head",
            "weights only": config.weights_only,
        }
    grid = f", grid of {config.grid[0]} x {config.grid[1]}" if config.grid else ""
    return {
        "layers": f"{config.depth} with {config.heads} heads each",
        "width": f"{config.width}, {config.head_dim} per head, {config.mlp_dim} in the MLP",
        "patches": f"{config.patch_size[0]} x {config.patch_size[1]} pixels{grid}",
        "pooling": config.pool,
        "activation": config.activation,
    } | ({"parts": ", ".join(part for part, present in other.items() if present)} if any(other.values()) else {})


def _parameter_count(params: Mapping) -> int:
    return sum(int(np.size(leaf)) for leaf in flatten_dict(params).values())


def digest_of_parameters(params: Mapping) -> str:
    """A hash (BLAKE2b, 32 hexadecimal digits) of the names and the bytes of all parameters.

    Results store this hash, so that results of models with different weights cannot be confused. Two models have equal
    hashes if their names and bytes are equal. If the same values have a different dtype, the hash differs.

    Args:
      params: nested dict of arrays.

    Example:
      >>> import numpy as np
      >>> from qkjax.weights.checkpoint import digest_of_parameters
      >>> digest_of_parameters({"head": {"bias": np.zeros(2, np.float32)}})
      '13b0f0a705c8022a8324fb8cc23637b3'
    """
    digest = blake2b(digest_size=16)
    for name, array in sorted(flatten_dict(params, sep="/").items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()


def write_checkpoint(
    path: Path | str,
    config: ViTConfig,
    params: Mapping,
    preprocess: Preprocess | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes parameters to an npz file as `params/...`, together with configuration and preprocessing as JSON.

    big_vision's loader reads `params` and ignores the rest.

    Args:
      path: the file to write.
      config: the architecture.
      params: nested dict of arrays.
      preprocess: preprocessing of images; if None, `load` infers it from the architecture.
      notes: sentences that state what `load` assumed.

    Raises:
      QkjaxError: the file cannot be written.
    """
    arrays = {f"params/{name}": np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    arrays[CONFIG_KEY] = np.asarray(json.dumps(config.to_dict()))
    if preprocess:
        arrays[PREPROCESS_KEY] = np.asarray(json.dumps(asdict(preprocess)))
    if notes:
        arrays[NOTES_KEY] = np.asarray(json.dumps(list(notes)))
    write_npz(Path(path), arrays)


def stored_config(text: str) -> dict:
    """Parses a stored configuration, and returns its fields.

    Raises:
      QkjaxError: the text is not a configuration of this version of qkjax, or its rotary positions are invalid.
    """
    try:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in from_json(text).items()}
    except (ValueError, AttributeError) as error:
        raise QkjaxError(f"the member {CONFIG_KEY!r} is not a configuration in JSON ({error})") from error
    if unknown := fields.keys() - set(ViTConfig.__dataclass_fields__):
        raise QkjaxError(
            f"the member {CONFIG_KEY!r} has the unknown field {min(unknown)!r}; another version of qkjax may have "
            "written it: download or save the file again"
        )
    if fields.get("rotary") is not None:
        fields["rotary"] = Rotary.from_dict(fields["rotary"])
    return fields
