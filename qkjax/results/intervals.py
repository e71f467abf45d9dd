"""Computes 95% confidence intervals by the percentile bootstrap."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

RESAMPLES = 2000
Interval = tuple[float, float, float]
"""An estimate, and the lower and the upper end of its 95% confidence interval."""


def interval(values: Float[np.ndarray, "seeds images"]) -> Interval:
    """The mean of all values and its 95% bootstrap interval, which resamples images and seeds at the same time.

    The bootstrap over a few seeds underestimates the spread between seeds. Differences between seeds are therefore
    multiplied by the factor by which Student's t widens an interval. If there is only one image, the ends of the
    interval are NaN.
    """
    seeds = len(values)
    if seeds > 1:
        factor = stdtrit(seeds - 1, 0.975) / ndtri(0.975) * np.sqrt(seeds / (seeds - 1))
        values = values + (factor - 1) * (values.mean(1, keepdims=True) - values.mean())
    if values.shape[1] < 2:
        return float(values.mean()), np.nan, np.nan
    # A resample is represented by weights of the values, so that all means are one matrix product.
    means = ((resamples(len(values), 0) @ values) * resamples(values.shape[1], 1)).sum(-1)
    return (float(values.mean()), *ends_of(means))


def ratio_interval(above: Float[np.ndarray, "terms images"], below: Float[np.ndarray, "terms images"]) -> Interval:
    """The mean over terms of mean(`above`) / mean(`below`), and its 95% bootstrap interval, which resamples images.

    The means in the ratio are over images. A ratio of means is stable even if some values of `below` are near 0. If
    there is only one image, the ends of the interval are NaN.
    """
    mean = float((above.mean(1) / below.mean(1)).mean())
    if above.shape[1] < 2:
        return mean, np.nan, np.nan
    weights = resamples(above.shape[1], 1)
    ratios = ((above @ weights.T) / (below @ weights.T)).mean(0)
    return (mean, *ends_of(ratios))


def ends_of(estimates: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    """The ends of the 95% interval of resampled estimates."""
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def resamples(count: int, seed: int) -> Float[np.ndarray, "resamples count"]:
    """The weights of `count` items in each bootstrap resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
