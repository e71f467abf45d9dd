"""Computes 95% confidence intervals by the percentile bootstrap."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

RESAMPLES = 2000
Interval = tuple[float, float, float]
"""An estimate, and the lower and upper end of its 95% interval."""


def interval(values: Float[np.ndarray, "seeds images"]) -> Interval:
    """Mean of all values and the 95% interval of this mean, with images and seeds resampled at the same time.

    The bootstrap over a few seeds underestimates the spread between seeds. The differences between seeds are therefore
    enlarged by the factor by which Student's t widens an interval. With only one image, the ends of the interval are
    NaN.
    """
    seeds = len(values)
    if seeds > 1:
        factor = stdtrit(seeds - 1, 0.975) / ndtri(0.975) * np.sqrt(seeds / (seeds - 1))
        values = values + (factor - 1) * (values.mean(1, keepdims=True) - values.mean())
    if values.shape[1] < 2:
        return float(values.mean()), np.nan, np.nan
    # A resample is stored as weights of the values, so that the mean of a resample is a matrix product.
    means = ((resamples(len(values), 0) @ values) * resamples(values.shape[1], 1)).sum(-1)
    return (float(values.mean()), *ends_of(means))


def ratio_interval(above: Float[np.ndarray, "terms images"], below: Float[np.ndarray, "terms images"]) -> Interval:
    """For each term, takes the ratio of the means over images, mean(`above`) / mean(`below`). Returns the mean of these
    ratios, and its 95% bootstrap interval, which resamples images.

    A ratio of means is stable even if some values of `below` are near 0. With only one image, the ends of the interval
    are NaN.
    """
    mean = float((above.mean(1) / below.mean(1)).mean())
    if above.shape[1] < 2:
        return mean, np.nan, np.nan
    weights = resamples(above.shape[1], 1)
    ratios = ((above @ weights.T) / (below @ weights.T)).mean(0)
    return (mean, *ends_of(ratios))


def ends_of(estimates: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    """Ends of the 95% interval of resampled estimates."""
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def resamples(count: int, seed: int) -> Float[np.ndarray, "resamples count"]:
    """Weights of `count` items in each bootstrap resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
