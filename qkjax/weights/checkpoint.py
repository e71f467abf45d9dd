"""A checkpoint in memory, the npz file that qkjax writes of it, and a digest of its parameters."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from qkjax.images.preprocess import Preprocess
from qkjax.vit.config import ViTConfig
from qkjax.weights.formats.npz import write_npz

CONFIG_KEY, PREPROCESS_KEY = "qkjax/config", "qkjax/preprocess"  # JSON members of the npz files that qkjax writes


@dataclass(frozen=True)
class Checkpoint:
    """A ViT: its architecture, its parameters, and how its images are preprocessed.

    Attributes:
      name: catalogue name, or the name of the file.
      config: the architecture.
      params: nested dict of numpy arrays, the Linen tree of `big_vision.models.vit.Model`, in the
        dtypes of the file (bfloat16 as `ml_dtypes.bfloat16`).
      source: path of the file or folder it was read from.
      preprocess: preprocessing of its images, at its own resolution. It comes from preprocessor_config.json
        (or timm's config.json, or qkjax's own npz), else from the catalogue, else from the family that the
        architecture belongs to.
    """

    name: str
    config: ViTConfig
    params: dict
    source: str
    preprocess: Preprocess


def write_checkpoint(
    path: Path | str, config: ViTConfig, params: Mapping, preprocess: Preprocess | None = None
) -> None:
    """Writes a tree as `params/...` of an npz, together with its configuration and preprocessing as JSON.

    big_vision's loader reads `params` and ignores the rest.

    Raises:
      QkjaxError: the file cannot be written.
    """
    arrays = {f"params/{name}": np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    arrays[CONFIG_KEY] = np.asarray(json.dumps(config.to_dict()))
    if preprocess:
        arrays[PREPROCESS_KEY] = np.asarray(json.dumps(asdict(preprocess)))
    write_npz(Path(path), arrays)
