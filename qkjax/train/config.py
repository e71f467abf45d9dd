"""What a training run is: one page of values."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are the demonstration: digits, under two minutes on two CPU cores.

    Attributes:
      constraint: of the query-key interaction, one for all layers or a schedule: "0-2:tied 3-5:free".
      pull: weight of the soft constraint pull(target): the mean squared distance of the layers' weighted
        cosines from their targets times this is added to the loss.
      match: widen the MLPs until there are as many parameters as without constraints.
      bias: queries and keys have biases; without them a head attends by Wq Wk^T alone.
      init: of queries and keys: "xavier" as big_vision, or "mimetic" (Trockman and Kolter 2023), also of
        values and outputs; then, as with `start`, the nearest that satisfies the constraint.
      start: a checkpoint, by name or path, to start from; its shape must be this run's. Without --bias its
        query and key biases are left out.
      data: what is learned: "digits" (scikit-learn's 1,797), "odd-one-out" (generated), a folder of photographs
        in a folder for each class, "tfds:NAME" (TensorFlow Datasets) or "hf:NAME" (Hugging Face).
      resolution: of photographs, in pixels of a side; for training a random part of each is cut out and
        mirrored at random.
      rand_augment: distortions of each photograph while training (RandAugment).
      rand_level: how strong they are, 0 to 10.
      patch: pixels of a side of a patch.
      width: of the embedding.
      depth: layers.
      heads: of a layer; they divide the width.
      mlp_dim: outputs of the first dense layer of an MLP.
      posemb: learned position embedding, or the fixed sine-cosine one.
      rep_size: a tanh layer as wide as the model before the head.
      steps: of the optimiser.
      batch: images of a step, on all devices together.
      accumulate: parts in which a batch is worked through, one after the other, to save memory.
      optimizer: "adamw", or "adafactor" as big_vision scales it.
      b2: decay of AdamW's second moment; 0.999 suits long runs.
      learning_rate: its peak, after the warm-up from 0 and before a cosine to 0.
      weight_decay: of kernels alone, as big_vision does; follows the learning rate's schedule, not its peak.
      warmup: steps from 0 to the peak.
      clip: largest global norm of the gradient.
      label_smoothing: share of the target spread over all classes.
      mixup: images and targets are mixed in pairs, with a share from Beta(mixup, mixup); 0 for not.
      shift: digits are moved by up to so many pixels either way while training.
      average: decay of a moving average of the parameters, which is then what is evaluated and exported;
        0 for none.
      dtype: of the matrix products; parameters are float32.
      parallel: over several devices, "data" copies the parameters to each, "fsdp" splits them.
      every: steps between two evaluations, each with a checkpoint.
      tensorboard: also write the metrics for TensorBoard.
      seed: of the initialisation, the split and the order of the images.
    """

    constraint: str = "free"
    pull: float = 1.0
    match: bool = False
    bias: bool = False
    init: Literal["xavier", "mimetic"] = "xavier"
    start: str = ""
    data: str = "digits"
    resolution: int = 224
    rand_augment: int = 0
    rand_level: float = 10.0
    patch: int = 2
    width: int = 64
    depth: int = 6
    heads: int = 4
    mlp_dim: int = 128
    posemb: Literal["learn", "sincos2d"] = "learn"
    rep_size: bool = False
    steps: int = 1200
    batch: int = 128
    accumulate: int = 1
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    b2: float = 0.95
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    clip: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    shift: int = 1
    average: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    parallel: Literal["data", "fsdp"] = "data"
    every: int = 200
    tensorboard: bool = False
    seed: int = 0

    def checked(self) -> "TrainConfig":
        """Itself, if it can be run.

        Raises:
          QkjaxError: a value out of its range, or a constraint or a schedule that cannot be.
        """
        from qkjax.train.constraints import constraint  # it imports jax, which `qkjax --help` does without

        for name, wanted, fine in _RANGES:
            if not fine(getattr(self, name)):
                raise QkjaxError(f"{name} is {getattr(self, name)}, wanted {wanted}")
        if self.width % self.heads:
            raise QkjaxError(f"{self.heads} heads do not divide the width {self.width}")
        if self.batch % self.accumulate:
            raise QkjaxError(f"a batch of {self.batch} cannot be worked through in {self.accumulate} equal parts")
        if not 0 <= self.warmup < self.steps:
            raise QkjaxError(f"warmup is {self.warmup} of {self.steps} steps: wanted 0 up to below that")
        if self.posemb == "sincos2d" and self.width % 4:
            raise QkjaxError(f"width is {self.width}, and sine-cosine positions want a multiple of 4")
        if self.start and (self.match or self.rep_size or self.init != "xavier" or self.posemb != "learn"):
            raise QkjaxError(
                "a run that starts from a checkpoint has its parts: no --match, --rep-size, --init, --posemb"
            )
        for name in self.constraints():
            constraint(name, self.width // self.heads)
        return self

    def constraints(self) -> tuple[str, ...]:
        """The constraint of each layer."""
        from qkjax.train.constraints import schedule

        return schedule(self.constraint, self.depth)

    def targets(self) -> dict[int, float]:
        """The weighted cosine to which layers are pulled, by layer."""
        from qkjax.train.constraints import constraint

        constraints = map(constraint, self.constraints())
        return {layer: own.target() for layer, own in enumerate(constraints) if own.target is not None}

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


_COUNT = "a whole number from 1 up", lambda value: value >= 1
_POSITIVE = "a number above 0", lambda value: 0 < value < math.inf
_NOT_NEGATIVE = "0 or more", lambda value: 0 <= value < math.inf
_SHARE = "from 0 to below 1", lambda value: 0 <= value < 1
_RANGES = [
    *((name, *_COUNT) for name in ("patch", "width", "depth", "heads", "mlp_dim", "steps", "batch", "accumulate")),
    ("every", *_COUNT),
    ("resolution", *_COUNT),
    ("rand_level", "from 0 to 10", lambda value: 0 <= value <= 10),
    *((name, *_POSITIVE) for name in ("learning_rate", "clip")),
    *((name, *_NOT_NEGATIVE) for name in ("weight_decay", "pull", "shift", "mixup", "seed", "rand_augment")),
    ("seed", "below 2^32", lambda value: value < 2**32),
    *((name, *_SHARE) for name in ("label_smoothing", "average", "b2")),
]


def from_dict(values: dict) -> TrainConfig:
    """A configuration from plain values; those of the demonstration hold where nothing is said.

    Raises:
      QkjaxError: a value that does not exist, or of the wrong type.
    """
    known, said = {field.name: field for field in fields(TrainConfig)}, {}
    for name, value in values.items():
        if name not in known:
            raise QkjaxError(f"a training run has no {name!r}; it has {', '.join(known)}")
        kind = type(known[name].default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise QkjaxError(f"{name} is {value!r}, wanted {kind.__name__}")
        if (choices := get_args(known[name].type)) and value not in choices:
            raise QkjaxError(f"{name} is {value!r}, wanted {' or '.join(choices)}")
        said[name] = kind(value)
    return TrainConfig(**said).checked()


def vit_config(config: TrainConfig, pixels: tuple[int, int, int], classes: int) -> ViTConfig:
    """The ViT of a run on images of (height, width, channels).

    Raises:
      QkjaxError: patches do not fill the image.
    """
    height, width, channels = pixels
    if height % config.patch or width % config.patch:
        raise QkjaxError(f"patches of {config.patch} pixels do not fill images of {height} x {width}")
    return ViTConfig(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        head_dim=config.width // config.heads,
        mlp_dim=config.mlp_dim,
        patch_size=(config.patch, config.patch),
        channels=channels,
        grid=(height // config.patch, width // config.patch),
        posemb=config.posemb,
        pool="gap",
        rep_size=config.width if config.rep_size else None,
        classes=classes,
    )
