"""Collects the settings on which a result depends. Equal settings lead to equal results."""

import json
from dataclasses import asdict
from importlib.metadata import version

import jax

from qkjax.errors import QkjaxError
from qkjax.images.sets import ImageSet
from qkjax.passes.options import PassOptions, batch_size
from qkjax.weights.checkpoint import Checkpoint, digest_of_parameters


def require_image_set(images) -> None:
    """Checks that an argument is an image set, since a path in its place is a natural mistake.

    Raises:
      QkjaxError: it is something else.
    """
    if not isinstance(images, ImageSet):
        raise QkjaxError(
            f"images is a {type(images).__name__}: expected an image set, as qkjax.images.open_images returns"
        )


def settings_of(checkpoint: Checkpoint, images: ImageSet, options: PassOptions, **choices) -> dict[str, str]:
    """Returns all settings on which a result depends, as strings.

    Args:
      checkpoint: the checkpoint.
      images: the image set.
      options: options of the pass.
      choices: other arguments of the analysis, such as `top=9`.

    Raises:
      QkjaxError: a file of the image set was replaced after the set was opened, or it is not an image set.
    """
    require_image_set(images)
    if not images.is_current():
        raise QkjaxError(f"files of {images.name} were replaced after the image set was opened: open it again")
    values = {
        "model": checkpoint.name,
        "parameters": digest_of_parameters(checkpoint.params),
        "config": checkpoint.config.to_dict(),
        "preprocess": asdict(checkpoint.preprocess),
        "images": images.fingerprint,
        **{name: value for name, value in asdict(options).items() if name != "shard"},  # does not affect the result
        **choices,
        "batch": batch_size(options.batch, len(images)),
        "devices": f"{jax.local_device_count()} {jax.default_backend()}",
        "jax": version("jax"),
        "qkjax": version("qkjax"),
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
