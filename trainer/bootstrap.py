"""Intervals by resampling prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTERVAL_PERCENT = (2.5, 97.5)

RESAMPLED_AT_ONCE = 4_000_000
"""Index entries drawn at a time: 32 MB, however many prompts there are."""


def resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Return the means (resamples, columns) of ``values`` (prompts, columns), rows redrawn.

    Equal numbers of prompts are resampled alike under one seed, so intervals of two metrics over
    the same prompts are comparable.
    """
    count = len(values)
    generator = np.random.default_rng(seed)
    at_once = max(1, RESAMPLED_AT_ONCE // count)
    means = []
    for done in range(0, resamples, at_once):
        drawn = generator.integers(0, count, (min(at_once, resamples - done), count))
        drawn += np.arange(len(drawn))[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means.append(times @ values / count)
    return np.concatenate(means)


def paired_interval(
    differences: NDArray[np.float64], seed: int, resamples: int
) -> tuple[float, float]:
    """Return the ends of the 95 % percentile bootstrap interval of the mean of ``differences``."""
    return interval(resampled_means(differences[:, None], seed, resamples)[:, 0])


def interval(estimates: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of the middle 95 % of ``estimates``."""
    low, high = np.percentile(estimates, INTERVAL_PERCENT)
    return float(low), float(high)
