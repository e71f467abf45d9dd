"""The optimisers, scaled as in big_vision: clip, Adam or Adafactor, learning rate, weight decay, schedule.

One update is -s(t) (lr u + wd theta), where the schedule s rises from 0 to 1 and falls to 0, and u is the optimiser's
update for the clipped gradient. Weight decay is therefore not multiplied by the learning rate; the equivalent value for
torch's AdamW is wd / lr.
"""

import jax
import jax.numpy as jnp
import optax

from qkjax.train.config import TrainConfig
from qkjax.train.constraints.registry import constraint
from qkjax.train.model import INTERACTION
from qkjax.vit.tree import block_name


def schedule(config: TrainConfig) -> optax.Schedule:
    """s(t): linear from 0 over the warm-up, then half a cosine that ends at 0 with the last step."""
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, config.warmup, config.steps)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimiser of a run."""
    constraints = {block_name(layer): constraint(name) for layer, name in enumerate(config.constraints())}

    def decays(path, _) -> bool:
        """Whether weight decay applies: to trained kernels, not to biases, norms, position embeddings or strengths."""
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
    """Adafactor as in Zhai et al. 2022 (arXiv 2106.04560, section 3.4): no relative step, the second moment's decay
    1 - t^-0.8 capped at 0.999, and a first moment in bfloat16."""
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=32, decay_rate_fn=lambda step, rate: jnp.minimum(0.999, 1 - (step + 1.0) ** -rate)
        ),
        optax.ema(decay=0.9, debias=False, accumulator_dtype=jnp.bfloat16),
    )
