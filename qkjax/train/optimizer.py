"""Defines the optimisers AdamW and Adafactor. Learning rate, weight decay and schedule are scaled as in big_vision.

One update of the parameters theta is -s(t) (lr u + wd theta). The schedule s rises from 0 to 1 and falls to 0, and u is
the update by Adam or Adafactor for the clipped gradient. The weight decay wd is therefore not multiplied by the
learning rate lr; the equivalent weight decay for torch's AdamW is wd / lr.
"""

import jax
import jax.numpy as jnp
import optax

from qkjax.train.config import TrainConfig
from qkjax.train.constraints.registry import constraint
from qkjax.train.model import INTERACTION
from qkjax.vit.tree import block_name


def schedule(config: TrainConfig) -> optax.Schedule:
    """The schedule s(t), which rises linearly from 0 to 1 in the warm-up and then falls to 0 along half a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, config.warmup, config.steps)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimiser of a training run."""
    constraints = {block_name(layer): constraint(name) for layer, name in enumerate(config.constraints())}

    def decays(path, _) -> bool:
        """Whether weight decay applies to a parameter. Weight decay applies only to trained kernels."""
        *above, name = (part.key for part in path)
        if INTERACTION in above:
            own = next(constraints[part] for part in above if part in constraints)
            return own.trained and own.parameters[name].decays
        return name == "kernel"

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b2=config.b2) if config.optimizer == "adamw" else _adafactor(),
        optax.scale(config.learning_rate),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: jax.tree_util.tree_map_with_path(decays, params)
        ),
        optax.scale_by_schedule(schedule(config)),
        optax.scale(-1.0),
    )


def _adafactor() -> optax.GradientTransformation:
    """Adafactor as in Zhai et al. 2022 (arXiv 2106.04560, section 3.4).

    This variant has no relative step size. The decay of the second moment is 1 - t^-0.8, but at most 0.999. The first
    moment is stored in bfloat16.
    """
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=32, decay_rate_fn=lambda step, rate: jnp.minimum(0.999, 1 - (step + 1.0) ** -rate)
        ),
        optax.ema(decay=0.9, debias=False, accumulator_dtype=jnp.bfloat16),
    )
