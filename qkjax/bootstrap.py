"""95% intervals by the percentile bootstrap."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
Interval = tuple[float, float, float]
"""An estimate and the ends of its interval."""


def interval(values: Float[np.ndarray, "seeds images"]) -> Interval:
    """Mean of all values; images and seeds are resampled together, each as a whole."""
    # Counts of how often each is drawn: the mean of a resample is then a product.
    means = ((_resamples(len(values), 0) @ values) * _resamples(values.shape[1], 1)).sum(-1)
    return (float(values.mean()), *_ends(means))


def ratio_interval(above: Float[np.ndarray, "terms images"], below: Float[np.ndarray, "terms images"]) -> Interval:
    """Mean over terms of the mean of `above` over that of `below`, images resampled: stable where single values of
    `below` are near 0."""
    drawn = _resamples(above.shape[1], 1)
    ratios = ((above @ drawn.T) / (below @ drawn.T)).mean(0)
    return (float((above.mean(1) / below.mean(1)).mean()), *_ends(ratios))


def _ends(estimates: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(count: int, seed: int) -> Float[np.ndarray, "resamples count"]:
    """Weights of so many things in each resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
