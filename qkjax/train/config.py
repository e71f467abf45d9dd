"""The configuration of a training run."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from qkjax.errors import QkjaxError, nearest
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary_config import Rotary


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. With the defaults, training takes under two minutes on two CPU cores.

    Attributes:
      constraint: constraint on the query-key interaction: one constraint for all layers, or a schedule by layer such as
        "0-2:tied 3-5:free".
      pull: weight of the penalty of the constraint pull(c). For the layers with this constraint, the penalty is the
        mean squared difference between their weighted cosines and c.
      match: widen the MLPs until the model has as many trainable parameters as a model without constraints.
      bias: add biases to queries and keys. Without these biases, attention depends only on Wq Wk^T.
      init: initialisation of attention: "xavier" as in big_vision, or "mimetic" (Trockman and Kolter 2023). "mimetic"
        also initialises values and outputs; layers with a constraint then start from the nearest kernels that satisfy
        the constraint.
      start: name or path of a checkpoint from which training starts. The checkpoint must have the shape of this run.
        Query and key biases of the checkpoint are dropped unless `bias` is set.
      data: training data: "digits" (scikit-learn's 1,797 images), "odd-one-out" (generated images), "tfds:NAME"
        (TensorFlow Datasets), "hf:NAME" (Hugging Face), or the path of a folder that contains one folder of images per
        class.
      resolution: side of photographs in pixels. Training uses random crops, which are mirrored at random.
      rand_augment: number of RandAugment distortions that are applied to each training photograph.
      rand_level: strength of the RandAugment distortions, 0 to 10.
      patch: side of a patch in pixels.
      width: embedding dimension; must be a multiple of the number of heads.
      depth: number of layers.
      heads: number of heads per layer.
      mlp_dim: hidden dimension of the MLPs.
      positions: how the model knows the positions of patches: "learned" (learned position embedding), "sincos2d" (fixed
        sine-cosine embedding), "rope" (rotary positions of queries and keys) or "rope+learned".
      constrained: with rotary positions, the interaction that the constraint applies to. "same-place" is Wq Wk^T, the
        interaction of tokens at the same place. "mean" is the mean of the interaction over all pairs of places. Without
        rotary positions, both are the same.
      rep_size: add a tanh layer, as wide as the embedding, before the classifier.
      steps: number of training steps.
      batch: number of images per step, over all devices.
      accumulate: number of parts into which each batch is split. To save memory, the parts are processed one after the
        other.
      optimizer: optimiser: "adamw", or "adafactor" with big_vision's scaling.
      b2: decay of AdamW's second moment; use 0.999 for long runs.
      learning_rate: peak learning rate. The learning rate rises from 0 during the warm-up, and then decays to 0 along
        half a cosine.
      weight_decay: weight decay of kernels, as in big_vision. Weight decay follows the schedule of the learning rate,
        but is not multiplied by the peak learning rate.
      warmup: number of warm-up steps.
      clip: largest global norm of the gradient; larger gradients are scaled down to this norm.
      label_smoothing: share of the target that is spread over all classes.
      mixup: concentration of the Beta distribution from which the weights of mixup are drawn; 0 turns mixup off.
      shift: largest shift of training digits in each direction, in pixels.
      average: decay of a moving average of the parameters; 0 turns the average off. If it is on, the averaged
        parameters are evaluated and exported instead of the trained parameters.
      dtype: floating-point format of the matrix products; parameters are float32.
      parallel: placement of parameters on several devices: "data" copies all parameters to each device, and "fsdp"
        splits large arrays over the devices.
      every: number of steps between two evaluations. Each evaluation saves a checkpoint.
      tensorboard: also write the metrics for TensorBoard.
      seed: random seed of the initialisation, of the data split, and of the order of the images.

    Example:
      config = TrainConfig(constraint="0-2:tied 3-5:free", steps=300)

    Example:
      >>> import qkjax
      >>> config = qkjax.TrainConfig(constraint="0-2:tied 3-5:free", steps=300)
      >>> config.steps
      300
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
    positions: Literal["learned", "sincos2d", "rope", "rope+learned"] = "learned"
    constrained: Literal["same-place", "mean"] = "same-place"
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
        """Checks the configuration, and returns it.

        Raises:
          QkjaxError: a value is out of range, or the constraint or schedule is invalid.
        """
        from qkjax.train.constraints import constraint  # this imports jax, which `qkjax --help` does not need

        for name, expected, is_valid in _RANGES:
            if not is_valid(getattr(self, name)):
                raise QkjaxError(f"{name}={getattr(self, name)}: expected {expected}")
        if self.width % self.heads:
            raise QkjaxError(f"width={self.width}, heads={self.heads}: expected a width that is a multiple of heads")
        if self.batch % self.accumulate:
            raise QkjaxError(
                f"batch={self.batch}, accumulate={self.accumulate}: expected a batch that is a multiple of accumulate"
            )
        if self.steps > MOST_EVALUATIONS * self.every:
            raise QkjaxError(
                f"every={self.every}: expected at most {MOST_EVALUATIONS:,} evaluations in steps={self.steps}"
            )
        if not 0 <= self.warmup < self.steps:
            raise QkjaxError(f"warmup={self.warmup}: expected 0 or more, and less than steps={self.steps}")
        if self.positions == "sincos2d" and self.width % 4:
            raise QkjaxError(f"width={self.width}: expected a multiple of 4 for sine-cosine position embeddings")
        if self.positions.startswith("rope") and (self.width // self.heads) % 4:
            raise QkjaxError(
                f"width={self.width}, heads={self.heads}: expected a width that is a multiple of 4 heads for rotary "
                "positions, because half of the planes of a head rotate with the row and half with the column"
            )
        fixed = {"match": False, "rep_size": False, "init": "xavier", "positions": "learned"}
        if self.start and (other := [name for name, value in fixed.items() if getattr(self, name) != value]):
            raise QkjaxError(
                f"start={self.start!r} determines the architecture and the initial values: do not set "
                f"{', '.join(other)}"
            )
        for name in self.constraints():
            constraint(name, self.width // self.heads)
        return self

    def constraints(self) -> tuple[str, ...]:
        """The name of each layer's constraint."""
        from qkjax.train.constraints import schedule

        return schedule(self.constraint, self.depth)

    def targets(self) -> dict[int, float]:
        """The targets of the weighted cosine, by layer, in layers with a soft constraint such as pull(0.5)."""
        from qkjax.train.constraints import constraint

        constraints = map(constraint, self.constraints())
        return {layer: own.target() for layer, own in enumerate(constraints) if own.target is not None}

    def to_dict(self) -> dict:
        """Returns the fields as plain values for JSON."""
        return asdict(self)


MOST_EVALUATIONS = 100_000
_COUNT = "a whole number of at least 1, at most one billion", lambda value: 1 <= value <= 10**9
_POSITIVE = "a number above 0", lambda value: 0 < value < math.inf
_NOT_NEGATIVE = "0 or more", lambda value: 0 <= value < math.inf
_SHARE = "from 0 to below 1", lambda value: 0 <= value < 1
_RANGES = [
    *((name, *_COUNT) for name in ("patch", "width", "depth", "heads", "mlp_dim", "steps", "batch", "accumulate")),
    ("every", *_COUNT),
    ("depth", "at most 1000 layers", lambda value: value <= 1000),
    ("resolution", *_COUNT),
    ("rand_level", "from 0 to 10", lambda value: 0 <= value <= 10),
    *((name, *_POSITIVE) for name in ("learning_rate", "clip")),
    *((name, *_NOT_NEGATIVE) for name in ("weight_decay", "pull", "shift", "mixup", "seed", "rand_augment")),
    ("seed", "below 2^32", lambda value: value < 2**32),
    *((name, "at most 1000", lambda value: value <= 1000) for name in ("rand_augment", "shift")),
    *((name, *_SHARE) for name in ("label_smoothing", "average", "b2")),
]


ROTARY = Rotary(100.0)
"""Rotary positions of models that are trained: DINOv3's base, and indices as coordinates, so that no plane of a small
grid cancels in the mean over places."""
POSEMB = {"learned": "learn", "sincos2d": "sincos2d", "rope": "none", "rope+learned": "learn"}


def from_dict(values: dict) -> TrainConfig:
    """Makes a configuration from plain values. Missing values take the defaults of `TrainConfig`.

    Raises:
      QkjaxError: a name is unknown, or a value has the wrong type or is out of range.
    """
    known, given = {field.name: field for field in fields(TrainConfig)}, {}
    values = dict(values)
    if "posemb" in values and "positions" not in values:  # the name until version 0.1
        before = values.pop("posemb")
        values["positions"] = "learned" if before == "learn" else before
    for name, value in values.items():
        if name not in known:
            raise QkjaxError(f"unknown setting {name!r}{nearest(name, known)}; expected one of {', '.join(known)}")
        kind = type(known[name].default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise QkjaxError(f"{name}={value!r}: expected {kind.__name__}")
        if (choices := get_args(known[name].type)) and value not in choices:
            raise QkjaxError(f"{name}={value!r}: expected {' or '.join(choices)}")
        given[name] = kind(value)
    return TrainConfig(**given).checked()


def vit_config(config: TrainConfig, pixels: tuple[int, int, int], classes: int) -> ViTConfig:
    """The architecture of the ViT in a training run.

    Args:
      config: configuration of the run.
      pixels: height, width and number of channels of the images.
      classes: the number of classes.

    Raises:
      QkjaxError: the height or width of the images is not a multiple of the patch size.
    """
    height, width, channels = pixels
    if height % config.patch or width % config.patch:
        raise QkjaxError(f"patch={config.patch}: expected a divisor of the images' height {height} and width {width}")
    return ViTConfig(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        head_dim=config.width // config.heads,
        mlp_dim=config.mlp_dim,
        patch_size=(config.patch, config.patch),
        channels=channels,
        grid=(height // config.patch, width // config.patch),
        posemb=POSEMB[config.positions],
        rotary=ROTARY if config.positions.startswith("rope") else None,
        pool="gap",
        rep_size=config.width if config.rep_size else None,
        classes=classes,
    )
