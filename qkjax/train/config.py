"""What a training run is: one page of values."""

from dataclasses import asdict, dataclass, fields

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are the demonstration: digits, about a minute on two CPU cores.

    Attributes:
      constraint: of the query-key interaction, one for all layers or a schedule: "0-2:tied 3-5:free".
      bias: queries and keys have biases; without them a head attends by Wq Wk^T alone.
      data: what is learned; "digits" are scikit-learn's 1,797 handwritten ones, 8 x 8 pixels.
      patch: pixels of a side of a patch.
      width, depth, heads, mlp_dim: of the ViT, as in `ViTConfig`.
      steps, batch: optimiser steps, images of each.
      learning_rate: its peak, after `warmup` steps from 0 and before a cosine to 0.
      weight_decay: of AdamW, on matrices alone, as big_vision does.
      clip: largest global norm of the gradient.
      label_smoothing: share of the target spread over all classes.
      shift: images are moved by up to so many pixels either way while training.
      every: steps between two evaluations, each with a checkpoint.
      seed: of the initialisation, the split and the order of the images.
    """

    constraint: str = "free"
    bias: bool = False
    data: str = "digits"
    patch: int = 2
    width: int = 64
    depth: int = 6
    heads: int = 4
    mlp_dim: int = 128
    steps: int = 1200
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    clip: float = 1.0
    label_smoothing: float = 0.1
    shift: int = 1
    every: int = 200
    seed: int = 0

    def checked(self) -> "TrainConfig":
        """Itself, if it can be run.

        Raises:
          QkjaxError: a value out of its range, or a constraint or a schedule that cannot be.
        """
        whole = ("patch", "width", "depth", "heads", "mlp_dim", "steps", "batch", "every")
        for name in whole:
            if getattr(self, name) < 1:
                raise QkjaxError(f"{name} is {getattr(self, name)}, wanted a whole number from 1 up")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise QkjaxError(f"{name} is {getattr(self, name)}, wanted a number above 0")
        if self.width % self.heads:
            raise QkjaxError(f"{self.heads} heads do not divide the width {self.width}")
        if not 0 <= self.warmup <= self.steps:
            raise QkjaxError(f"warmup is {self.warmup} of {self.steps} steps: wanted 0 up to all of them")
        if not (0 <= self.label_smoothing < 1 and self.weight_decay >= 0 and self.shift >= 0):
            raise QkjaxError("label_smoothing is from 0 to below 1, weight_decay and shift are 0 or more")
        self.constraints()
        return self

    def constraints(self) -> tuple[str, ...]:
        """The constraint of each layer."""
        from qkjax.train.constraints import schedule  # and jax with it, which the command line starts without

        return schedule(self.constraint, self.depth)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def from_dict(values: dict) -> TrainConfig:
    """A configuration from plain values.

    Raises:
      QkjaxError: a value that does not exist, or of the wrong type.
    """
    known = {field.name: type(field.default) for field in fields(TrainConfig)}
    for name, value in values.items():
        if name not in known:
            raise QkjaxError(f"a training run has no {name!r}; it has {', '.join(known)}")
        if type(value) is not known[name] and not (known[name] is float and type(value) is int):
            raise QkjaxError(f"{name} is {value!r}, wanted {known[name].__name__}")
    return TrainConfig(**values).checked()


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
        pool="gap",
        classes=classes,
    )
