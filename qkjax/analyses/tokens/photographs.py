"""Finds which images of a set are crops of the same photograph, so that intervals can resample photographs."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from qkjax.results.intervals import RESAMPLES, resamples

CROP = re.compile(r"(.+) 1/\d+ row \d+ column \d+", re.DOTALL)
"""The names of crops in the default image set; see `qkjax.images.photographs`."""


def photograph_indices(names: Sequence[str]) -> Int[np.ndarray, "images"]:
    """The index of the photograph that each image shows, in the order of their first images.

    Crops of the default image set show the photograph from which they are cut. Every other image is a photograph.

    Example:
      >>> photograph_indices(["chelsea", "chelsea 1/2 row 0 column 1", "coins"]).tolist()
      [0, 0, 1]
    """
    stems = [match[1] if (match := CROP.fullmatch(name)) else name for name in names]
    order = {stem: index for index, stem in enumerate(dict.fromkeys(stems))}
    return np.array([order[stem] for stem in stems], np.int64)


def photograph_resamples(photographs: Int[np.ndarray, "images"]) -> Float[np.ndarray, "resamples images"]:
    """The weights of images in each bootstrap resample, which draws photographs and keeps all images of each.

    With a single photograph, all weights are NaN.
    """
    present, index = np.unique(photographs, return_inverse=True)
    if len(present) < 2:
        return np.full((RESAMPLES, len(index)), np.nan)
    return resamples(len(present), 1)[:, index]
