"""Defines the training step and the evaluation, as pure functions and as jitted functions on all devices."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, UInt8

from qkjax.passes.inputs import normalised_pixels, scaling
from qkjax.train.config import TrainConfig
from qkjax.train.data import PRESET
from qkjax.train.devices import placement, replicated
from qkjax.train.model import initial, plain
from qkjax.train.optimizer import optimizer
from qkjax.train.penalty import penalty
from qkjax.train.positions import constrained_factor
from qkjax.vit.config import ViTConfig
from qkjax.vit.model import ViT

Images = Float[Array, "batch height width channels"] | UInt8[Array, "batch height width channels"]
Labels = Int32[Array, "batch"]
Weights = Float[Array, "batch"]


class State(NamedTuple):
    """The state of training: everything that changes from step to step.

    Attributes:
      step: number of finished steps.
      params: the training tree; see `qkjax.train.model`.
      optimizer: state of the optimiser.
      average: moving average of the training tree; empty if the average is turned off.
    """

    step: Int32[Array, ""]
    params: Mapping
    optimizer: optax.OptState
    average: Mapping

    @property
    def evaluated(self) -> Mapping:
        """The training tree that is evaluated and exported: the moving average, or `params` if there is no average."""
        return self.average or self.params


class Program(NamedTuple):
    """The jitted functions of a training run. Runs that differ only in their seed share one program.

    Attributes:
      begin: function that takes a training tree, and returns the first state, on all devices.
      step: function that takes a state, images, labels and, with mixup, the weights of the images; and returns the next
        state and the loss before the step.
      evaluate: function that takes a training tree, images and labels, and returns sums over the images; see
        `evaluate`.
      export: function that takes a training tree, and returns the plain parameter tree; every device has the complete
        tree.
      shapes: shape and sharding of each array of a state.
    """

    begin: Callable[[Mapping], State]
    step: Callable[..., tuple[State, Array]]
    evaluate: Callable[[Mapping, Images, Array], dict[str, Array]]
    export: Callable[[Mapping], dict]
    shapes: State


class Batch(NamedTuple):
    """The images of a training step, or of a part of it.

    Attributes:
      images: pixels from 0 to 255 in uint8, or numbers from -1 to 1 in float32.
      labels: index of the class of each image.
      previous: with mixup, the images and labels that precede each image in the batch; otherwise None.
      weights: with mixup, the weight of each image; the previous image has the remaining weight.
    """

    images: Images
    labels: Labels
    previous: tuple[Images, Labels] | None = None
    weights: Weights | None = None


def normalised(images: Images) -> Float[Array, "batch height width channels"]:
    """The input of the model: uint8 pixels are normalised like photographs; other images are unchanged."""
    if images.dtype != jnp.uint8:
        return images
    return normalised_pixels(images, scaling(PRESET))


def mixed(
    batch: Batch, classes: int
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """The inputs of the model and their targets: with mixup, a x + (1 - a) x' for each image x and the previous x'."""
    images, targets = normalised(batch.images), jax.nn.one_hot(batch.labels, classes)
    if batch.weights is None:
        return images, targets
    before, labels = batch.previous
    share, share_of_targets = (batch.weights.reshape(-1, *(1,) * (x.ndim - 1)) for x in (images, targets))
    images = share * images + (1 - share) * normalised(before)
    return images, share_of_targets * targets + (1 - share_of_targets) * jax.nn.one_hot(labels, classes)


def loss(config: TrainConfig, vit: ViTConfig, params: Mapping, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy with smoothed targets, plus the penalty of soft constraints on the weighted cosines."""
    tree = plain(params, vit, config.constraints(), config.constrained)
    images, targets = mixed(batch, vit.classes)
    logits = ViT(vit, config.dtype).apply({"params": tree}, images)[0].astype(jnp.float32)
    smoothed = optax.smooth_labels(targets, config.label_smoothing)
    value = optax.softmax_cross_entropy(logits, smoothed).mean()
    targets_of_cosine = config.targets()
    if not targets_of_cosine:
        return value
    return value + config.pull * penalty(tree, targets_of_cosine, constrained_factor(vit, config.constrained))


def gradient(config: TrainConfig, vit: ViTConfig, params: Mapping, batch: Batch):
    """The loss of a batch and its gradient, computed in `config.accumulate` parts, one after the other.

    Part i has the rows i, i + parts, i + 2 parts and so on, so that each device has rows of every part. Images are
    normalised and mixed in each part: the whole batch exists in uint8 only.
    """
    parts = config.accumulate
    loss_and_gradient = jax.value_and_grad(partial(loss, config, vit))
    if parts == 1:
        return loss_and_gradient(params, batch)
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, loss_and_gradient(params, part)), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    total, _ = jax.lax.scan(add, zero, split)
    return jax.tree.map(lambda x: x / parts, total)


def update(
    config: TrainConfig, vit: ViTConfig, state: State, images: Images, labels: Labels, weights: Weights | None = None
) -> tuple[State, Array]:
    """Performs one training step; returns the next state, and the loss before the step.

    Args:
      config: configuration of the run.
      vit: architecture of the model.
      state: the state before the step.
      images: pixels from 0 to 255 in uint8, or numbers from -1 to 1 in float32.
      labels: index of the class of each image.
      weights: with mixup, the weight of each image; the previous image of the batch has the remaining weight.
    """
    previous = None if weights is None else (jnp.roll(images, 1, axis=0), jnp.roll(labels, 1, axis=0))
    value, slope = gradient(config, vit, state.params, Batch(images, labels, previous, weights))
    transform = optimizer(config)
    updates, optimizer_state = transform.update(slope, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = optax.incremental_update(params, state.average, 1 - config.average) if config.average else {}
    return State(state.step + 1, params, optimizer_state, average), value


def evaluate(
    config: TrainConfig, vit: ViTConfig, params: Mapping, images: Images, labels: Int32[Array, "batch"]
) -> dict[str, Array]:
    """Evaluates a batch; returns the numbers of images and correct answers, and the summed cross-entropy (nats).

    Images with a negative label, which pad the batch, are not counted.
    """
    tree = plain(params, vit, config.constraints(), config.constrained)
    logits = ViT(vit, config.dtype).apply({"params": tree}, normalised(images))[0]
    logits, counts = logits.astype(jnp.float32), labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return {
        "count": counts.sum(),
        "correct": (counts & (logits.argmax(-1) == labels)).sum(),
        "loss": jnp.where(counts, losses, 0).sum(),
    }


def begin(config: TrainConfig, params: Mapping) -> State:
    """Makes the state before the first step."""
    transform = optimizer(config)
    average = jax.tree.map(jnp.copy, params) if config.average else {}
    return State(jnp.zeros((), jnp.int32), params, transform.init(params), average)


def program(config: TrainConfig, vit: ViTConfig) -> Program:
    """Makes the jitted functions of a run, which use all devices of all hosts."""
    return _program(replace(config, seed=0, every=1, start="", tensorboard=False), vit)


@cache
def _program(config: TrainConfig, vit: ViTConfig) -> Program:
    names, constrained = config.constraints(), config.constrained
    params = jax.eval_shape(lambda: initial(jax.random.key(0), vit, names, bias=config.bias, constrained=constrained))
    shapes = jax.eval_shape(partial(begin, config), params)
    shardings = placement(shapes, config.parallel)
    # On a CPU, the state is not donated, because JAX shares buffers with numpy, and thus with a checkpoint that is
    # being written.
    donate = {} if jax.default_backend() == "cpu" else {"donate_argnums": 0}
    return Program(
        begin=jax.jit(partial(begin, config), out_shardings=shardings),
        step=jax.jit(partial(update, config, vit), out_shardings=(shardings, replicated()), **donate),
        evaluate=jax.jit(partial(evaluate, config, vit), out_shardings=replicated()),
        export=jax.jit(partial(plain, config=vit, names=names, constrained=constrained), out_shardings=replicated()),
        shapes=jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings),
    )
