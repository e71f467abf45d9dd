"""The images that excite each mode most, as a labelled dataset."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qkjax.analyses.top_images.scan import Scan
from qkjax.interaction.metrics import Metrics
from qkjax.results.modes import PER_MODE
from qkjax.results.store import texts, versions


def top_images_dataset(found: Scan, names: Sequence[str], metrics: Metrics, attrs: Mapping[str, str]) -> xr.Dataset:
    """The images that excite each mode most.

    Args:
      found: what `scan` found.
      names: of all images of the set.
      metrics: of the modes.

    Returns:
      A dataset with dims score, layer, head, mode, sign (1 as in `Modes`, -1 the other), place (0 best)
      and image: `value` of the score, `image_index` (-1 where there were too few images), the names as
      coordinate `image`; `singular_value` and `cosine` of the modes; `unreadable`, the names of images
      that could not be read, and each one's `reason`.
    """
    dims = ("score", *PER_MODE, "sign", "place")
    scores = json.loads(found.settings["scores"])
    unreadable = [(names[index], reason) for index, reason in found.unreadable]
    variables = {
        "value": (dims, np.asarray(found.top.score)),
        "image_index": (dims, np.asarray(found.top.image)),
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
        "unreadable": ("broken", texts([name for name, _ in unreadable])),
        "reason": ("broken", texts([reason for _, reason in unreadable])),
    }
    coords = {"score": ("score", texts(scores)), "sign": ("sign", [1, -1]), "image": ("image", texts(names))}
    return xr.Dataset(variables, coords, {**attrs, **versions(), "settings": json.dumps(found.settings)})
