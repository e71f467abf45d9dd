"""One step of training, and what a model is worth on held-out images: pure functions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int32

from qkjax.train.config import TrainConfig
from qkjax.train.model import plain
from qkjax.vit.config import ViTConfig
from qkjax.vit.model import ViT


class State(NamedTuple):
    """All that changes in training: steps done, the training tree, the optimiser's state."""

    step: Int32[Array, ""]
    params: Mapping
    optimizer: optax.OptState


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW under a clipped gradient; warm-up, then a cosine to 0. Matrices alone decay, not biases or norms,
    and not what is frozen."""
    rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, config.warmup, config.steps)
    frozen = {f"encoderblock_{layer}" for layer, name in enumerate(config.constraints()) if name == "frozen"}

    def decays(path, leaf) -> bool:
        names = {part.key for part in path}
        return leaf.ndim > 1 and not ("interaction" in names and names & frozen)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            rate,
            b2=0.95,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(decays, params),
        ),
    )


def logits(
    params: Mapping, vit: ViTConfig, names: tuple[str, ...], images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch classes"]:
    """Of a training tree."""
    return ViT(vit).apply({"params": plain(params, vit, names)}, images)[0]


def loss(
    params: Mapping,
    vit: ViTConfig,
    names: tuple[str, ...],
    images: Float[Array, "batch height width channels"],
    labels: Int32[Array, "batch"],
    smoothing: float,
) -> Float[Array, ""]:
    """Mean cross-entropy against smoothed labels."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, vit.classes), smoothing)
    return optax.softmax_cross_entropy(logits(params, vit, names, images), targets).mean()


def make_step(config: TrainConfig, vit: ViTConfig) -> Callable[[State, Array, Array], tuple[State, Array]]:
    """The jitted step of a run: (state, images, labels) -> (next state, loss before it)."""
    transform, names = optimizer(config), config.constraints()

    @jax.jit
    def step(state: State, images, labels):
        value, gradient = jax.value_and_grad(loss)(state.params, vit, names, images, labels, config.label_smoothing)
        updates, optimizer_state = transform.update(gradient, state.optimizer, state.params)
        return State(state.step + 1, optax.apply_updates(state.params, updates), optimizer_state), value

    return step


@partial(jax.jit, static_argnames=("vit", "names"))
def evaluate(params: Mapping, vit: ViTConfig, names: tuple[str, ...], images, labels) -> dict[str, Array]:
    """Accuracy and cross-entropy on images that are not learned from."""
    found = logits(params, vit, names, images)
    return {
        "accuracy": (found.argmax(-1) == labels).mean(),
        "validation_loss": optax.softmax_cross_entropy_with_integer_labels(found, labels).mean(),
    }
