"""What a result depends on: equal settings give equal results."""

import json
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from qkjax.images.sets import ImageSet
from qkjax.passes.options import PassOptions, batch_size
from qkjax.weights.load import Checkpoint


def settings_of(checkpoint: Checkpoint, images: ImageSet, options: PassOptions, **choices) -> dict[str, str]:
    """Everything that a result depends on, as texts.

    Args:
      choices: what the analysis lets its caller choose besides `options`, such as `top=9`.
    """
    digest = blake2b(digest_size=16)
    for name, array in sorted(flatten_dict(checkpoint.params, sep="/").items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    values = {
        "model": checkpoint.name,
        "parameters": digest.hexdigest(),
        "config": checkpoint.config.to_dict(),
        "preprocess": asdict(checkpoint.preprocess),
        "images": images.fingerprint,
        **asdict(options),
        **choices,
        "batch": batch_size(options.batch),
        "devices": f"{jax.local_device_count()} {jax.default_backend()}",
        "jax": version("jax"),
        "qkjax": version("qkjax"),
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
