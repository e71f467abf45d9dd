"""Named configurations of training runs. Comments state the purpose, training time and expected accuracy of each."""

from dataclasses import replace
from pathlib import Path

from qkjax.errors import QkjaxError, nearest
from qkjax.runtime.files import read_text
from qkjax.runtime.parsed import from_json, from_toml
from qkjax.train.config import TrainConfig, from_dict

# Two CPU cores train this model of six layers in about a minute, so that dozens of runs are feasible. Six layers are
# enough to compare constraints on early and late layers. MLPs are widened (match=True), so that the number of trainable
# parameters is the same for all constraints.
_STUDY = TrainConfig(width=48, mlp_dim=96, batch=64, match=True)

PRESETS = {
    # The demonstration on scikit-learn's digits. It takes 102 s on two CPU cores, and the accuracy is 97.8%.
    "digits": TrainConfig(),
    "digits-study": replace(_STUDY, steps=1500, every=150),
    "odd-one-out-study": replace(_STUDY, data="odd-one-out", patch=8, steps=2000, every=200, label_smoothing=0.0),
    # big_vision's recipe for a ViT-S/16 on ImageNet-1k from scratch, 90 epochs (Beyer et al. 2022, arXiv 2205.01580).
    # The paper reports 76.5%, in 6 to 7 hours on a TPU v3-8; we have not run this preset. Unlike the recipe, the preset
    # uses all training images, and ImageNet's validation set as held-out images. As in the recipe, queries and keys
    # have biases. With a constraint, set bias=False, because a constraint on Wq Wk^T does not act on the biases.
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
        positions="sincos2d",
        rep_size=True,
        steps=112_603,  # 90 epochs of 1,281,167 images
        batch=1024,
        accumulate=2,  # about 29 GB on one GPU without fused attention: see docs/accelerators.md
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
    """Loads a configuration by the name of a preset, or from a file.

    Args:
      name: name of a preset, or path of a .json or .toml file. Values that are missing in the file take the defaults of
        `TrainConfig`.

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
            f"unknown preset {name!r}{nearest(name, PRESETS)}; expected one of {', '.join(PRESETS)}, "
            "or the path of a .json or .toml file"
        )
    try:
        text = read_text(path)
        values = from_json(text) if path.suffix == ".json" else from_toml(text)
        if not isinstance(values, dict):
            raise ValueError("expected an object with the settings of a run")
        return from_dict(values)
    except (ValueError, TypeError) as error:
        raise QkjaxError(f"cannot read the configuration {path}: {error}") from error
    except QkjaxError as error:
        raise QkjaxError(f"{path}: {error}") from error
