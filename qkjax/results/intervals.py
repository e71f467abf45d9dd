"""95% intervals by the percentile bootstrap."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, t

RESAMPLES = 2000
Interval = tuple[float, float, float]
"""An estimate and the ends of its interval."""


def interval(values: Float[np.ndarray, "seeds images"]) -> Interval:
    """Mean of all values; images and seeds are resampled together, each as a whole.

    Few seeds underestimate the spread between seeds, so their differences are widened as Student's t widens an
    interval. One image has no interval: NaN.
    """
    seeds = len(values)
    if seeds > 1:
        wider = t.ppf(0.975, seeds - 1) / norm.ppf(0.975) * np.sqrt(seeds / (seeds - 1))
        values = values + (wider - 1) * (values.mean(1, keepdims=True) - values.mean())
    if values.shape[1] < 2:
        return float(values.mean()), np.nan, np.nan
    # Counts of how often each is drawn: the mean of a resample is then a product.
    means = ((resamples(len(values), 0) @ values) * resamples(values.shape[1], 1)).sum(-1)
    return (float(values.mean()), *ends_of(means))


def ratio_interval(above: Float[np.ndarray, "terms images"], below: Float[np.ndarray, "terms images"]) -> Interval:
    """Mean over terms of the mean of `above` over that of `below`, images resampled: stable where single values of
    `below` are near 0. One image has no interval: NaN."""
    mean = float((above.mean(1) / below.mean(1)).mean())
    if above.shape[1] < 2:
        return mean, np.nan, np.nan
    drawn = resamples(above.shape[1], 1)
    ratios = ((above @ drawn.T) / (below @ drawn.T)).mean(0)
    return (mean, *ends_of(ratios))


def ends_of(estimates: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    """Ends of the 95% interval."""
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def resamples(count: int, seed: int) -> Float[np.ndarray, "resamples count"]:
    """The weight of each of `count` items in each resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
