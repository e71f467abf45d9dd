"""Named configurations, with their purpose, time and expected accuracy."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

from qkjax.errors import QkjaxError, nearest
from qkjax.train.config import TrainConfig, from_dict

# Two CPU cores train these six layers in about a minute: few enough for dozens of runs, and enough to compare
# constraints of early and late layers. MLPs are widened so that all constraints have the same number of trained values.
_STUDY = TrainConfig(width=48, mlp_dim=96, batch=64, match=True)

PRESETS = {
    # The demonstration: scikit-learn's digits; 102 s on two CPU cores, 97.8%.
    "digits": TrainConfig(),
    "digits-study": replace(_STUDY, steps=1500, every=150),
    "odd-one-out-study": replace(_STUDY, data="odd-one-out", patch=8, steps=2000, every=200, label_smoothing=0.0),
    # big_vision's recipe for a ViT-S/16 on ImageNet-1k from scratch, 90 epochs (Beyer et al. 2022, arXiv
    # 2205.01580). It reports 76.5%, in 6 to 7 hours on a TPU v3-8; we have not run it. Unlike there, all training
    # images are used, and the held-out images are ImageNet's validation set. Queries and keys have biases, as there.
    # With a constraint, set bias=False, since no constraint on Wq Wk^T acts on the biases.
    "imagenet-s16": TrainConfig(
        data="tfds:imagenet2012",
        resolution=224,
        rand_augment=2,
        rand_level=10.0,
        mixup=0.2,
        label_smoothing=0.0,
        bias=True,
        patch=16,
        width=384,
        depth=12,
        heads=6,
        mlp_dim=1536,
        posemb="sincos2d",
        rep_size=True,
        steps=112_603,  # 90 epochs of 1,281,167 images
        batch=1024,
        b2=0.999,
        learning_rate=1e-3,
        weight_decay=1e-4,
        warmup=10_000,
        clip=1.0,
        dtype="bfloat16",
        every=2500,
    ),
}


def load_preset(name: str) -> TrainConfig:
    """A configuration by name or from a file.

    Args:
      name: name of a preset, or path of a .json or .toml file; missing values are `TrainConfig`'s defaults.

    Raises:
      QkjaxError: the preset is unknown, or the file cannot be read or has invalid values.

    Example:
      config = replace(load_preset("odd-one-out-study"), constraint="tied", seed=3)
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix not in (".json", ".toml"):
        raise QkjaxError(
            f"unknown preset {name!r}{nearest(name, PRESETS)}; choose from {', '.join(PRESETS)}, "
            "or give a .json or .toml file"
        )
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return from_dict(dict(values))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QkjaxError(f"cannot read the configuration {path}: {reason}") from error
    except QkjaxError as error:
        raise QkjaxError(f"{path}: {error}") from error
