"""The estimators of label noise, on arrays: what each assumes, and when it can't be had.

A vote is 1 for the chosen, -1 for the rejected, 0 for neither. docs/noise.md compares them.
"""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import betaincinv, expit, logit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Rule = Callable[[Array, Array, Array], Array]

DRAWS = 400
"""Bootstrap samples, and draws of the number of wrong labels."""

PRIOR_SCALE = 2.5
"""Prior standard deviation of a slope, per standard deviation of its column."""


class Interval(NamedTuple):
    """A share and its 95 % interval."""

    rate: float
    low: float
    high: float


def by_agreement(fit: Array, samples: Array, votes: Array) -> Array:
    """Return P(the label is wrong) of patterns of votes, from how often the voters agree.

    If, the truth given, voters err independently, then the mean of the product of two voters'
    votes is b_i b_j with b = 2 P(right) - 1, so b_i^2 = M_ij M_ik / M_jk for any three (Fu et al.
    2020, arXiv 2002.11955, algorithm 1; the model is Dawid and Skene's of 1979, a voter erring on
    either side alike). Of several triplets the median counts; a voter that no triplet tells of has
    no weight. The probability is Bayes' rule over the votes.

    Args:
        fit: patterns x voters, on whatever pairs tell of the voters. The first voter made the
            labels.
        samples: samples x patterns; how often each sample holds each pattern of ``fit``.
        votes: patterns x voters, of the labels asked about.

    Returns:
        samples x patterns of ``votes``; NaN where no two voters agree with the first, and with each
        other, more often than not: then nothing tells whether it is better than chance.
    """
    weights = _weights(fit, samples)
    weights[1:] = np.nan_to_num(weights[1:])
    return _wrong(weights, votes)


def by_jury(fit: Array, samples: Array, votes: Array) -> Array:
    """Return the same where no voter made the labels alone; NaN where no triplet tells of any."""
    weights = _weights(fit, samples)
    wrong = _wrong(np.nan_to_num(weights), votes)
    wrong[np.isnan(weights).all(axis=0)] = np.nan
    return wrong


def _wrong(weights: Array, votes: Array) -> Array:
    return np.asarray(expit(-(weights.T @ votes.T)))


def _weights(fit: Array, samples: Array) -> Array:
    """Return the log-odds that each voter is right, voters x samples; NaN: no triplet tells."""
    voters = range(fit.shape[1])
    means = {}
    for i, j in combinations(voters, 2):
        product = fit[:, i] * fit[:, j]
        with np.errstate(invalid="ignore"):
            means[i, j] = means[j, i] = samples @ product / (samples @ np.abs(product))
    # Nobody is surer than as many right votes and half a wrong one more make him.
    most = 1 - 1 / (samples.sum(axis=1) + 1)
    weights = []
    for i in voters:
        others = combinations([j for j in voters if j != i], 2)
        squares = [_where_positive(means[i, j], means[i, k], means[j, k]) for j, k in others]
        right = (1 + np.minimum(np.sqrt(_median(np.array(squares))), most)) / 2
        weights.append(logit(right))
    return np.array(weights)


def _where_positive(ij: Array, ik: Array, jk: Array) -> Array:
    """Return M_ij M_ik / M_jk where all three are above 0, else NaN."""
    positive = (ij > 0) & (ik > 0) & (jk > 0)
    return np.divide(ij * ik, jk, out=np.full_like(ij, np.nan), where=positive)


def _median(squares: Array) -> Array:
    """Return the median over triplets, of those that tell; NaN where none does."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return np.asarray(np.nanmedian(squares, axis=0))


def by_swaps(fit: Array, samples: Array, verdicts: Array) -> Array:
    """Return P(the label is wrong) of verdicts, from how often a judge contradicts itself.

    If a judge's readings in the two orders err independently and equally often, the truth given,
    they differ with probability d = 2 e (1 - e), which gives e = (1 - sqrt(1 - 2 d)) / 2; two
    that agree are wrong with probability e^2 / (e^2 + (1 - e)^2). What a judge gets wrong in both
    orders for a reason can't be seen.

    Args:
        fit: patterns x 1; of two candidates the share of double readings that disagree. All that
            were read, not those that became pairs: a contradiction is a tie and seldom a pair.
        samples: samples x patterns.
        verdicts: patterns x 1; the mean verdict on a pair, in [-1, 1].

    Returns:
        samples x patterns of ``verdicts``; NaN where half of a sample's readings or more disagree.
    """
    differ = samples @ fit[:, 0] / samples.sum(axis=1)
    # As many readings and half a contradiction more: no judge is known to be perfect.
    least = 0.5 / (samples.sum(axis=1) + 1)
    differ = np.where(differ < 1 / 2, np.maximum(differ, least), np.nan)
    error = (1 - np.sqrt(1 - 2 * differ)) / 2
    return np.asarray(expit(2 * np.outer(logit(error), verdicts[:, 0])))


class Tally(NamedTuple):
    """Patterns of evidence and how often each was found."""

    patterns: Array
    counts: Array


def over_patterns(
    rule: Rule, fit: Tally, asked: Tally, rng: np.random.Generator
) -> tuple[Array, Array] | None:
    """Return P(wrong) of each pattern asked about, and draws of how many labels are wrong in all.

    Each draw has a bootstrap sample of ``fit`` of its own, then the labels' own chance. A sample in
    which nothing can be estimated counts as a coin's: half of it is wrong.
    """
    wrong = rule(fit.patterns, fit.counts[None, :], asked.patterns)[0]
    if np.isnan(wrong).any():
        return None
    total = fit.counts.sum()
    samples = rng.multinomial(int(total), fit.counts / total, size=DRAWS).astype(np.float64)
    drawn = np.nan_to_num(rule(fit.patterns, samples, asked.patterns), nan=0.5)
    labels = rng.binomial(asked.counts.astype(np.int64), drawn)
    return wrong, labels.sum(axis=1).astype(np.float64)


def drawn_interval(wrong: float, draws: Array, pairs: int) -> Interval:
    """Return the share of so many wrong labels among ``pairs``, its interval from the draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return _whole(wrong, low, high, pairs)


def _whole(wrong: float, low: float, high: float, pairs: int) -> Interval:
    """Return shares of ``pairs``; the ends are whole pairs, as the wrong ones are."""
    return Interval(
        float(wrong) / pairs, float(np.floor(low)) / pairs, float(np.ceil(high)) / pairs
    )


class Calibration(NamedTuple):
    """A logistic regression of wrong labels on evidence, with its uncertainty."""

    centre: Array
    scale: Array
    """0 for a column that tells nothing."""
    coefficients: Array
    covariance: Array

    def design(self, evidence: Array) -> Array:
        """Return rows x (1 + columns): standardised, and 0 (the mean) where it is not known."""
        columns = np.nan_to_num((evidence - self.centre) * self.scale)
        return np.column_stack([np.ones(len(evidence)), columns])

    def probability(self, evidence: Array) -> Array:
        """Return P(the label is wrong) of each row of evidence."""
        return np.asarray(expit(self.design(evidence) @ self.coefficients))


def calibrate(evidence: Array, wrong: Array) -> Calibration:
    """Return the regression of ``wrong`` on ``evidence``: rows x columns, NaN where not known.

    The slopes' prior is normal(0, 2.5) per standard deviation (Gelman et al. 2008,
    doi:10.1214/08-AOAS191, who take a Cauchy). Half a right and half a wrong label more, both with
    mean evidence, keep the intercept finite where the labels are all right. The covariance is the
    inverse of the log-posterior's curvature at its mode (Laplace).
    """
    from sklearn.linear_model import LogisticRegression

    known = np.where(np.isnan(evidence).all(axis=0), 0.0, evidence)
    centre, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    blank = Calibration(centre, scale, centre, centre)
    design = blank.design(np.vstack([evidence, centre, centre]))
    target, weight = np.append(wrong, [0, 1]), np.append(np.ones(len(wrong)), [0.5, 0.5])
    model = LogisticRegression(C=PRIOR_SCALE**2, solver="newton-cholesky", tol=1e-8)
    model.fit(design[:, 1:], target, sample_weight=weight)
    coefficients = np.append(model.intercept_, model.coef_)
    p = expit(design @ coefficients)
    prior = np.diag([0.0, *np.full(len(scale), PRIOR_SCALE**-2)])
    curvature = design.T @ (design * (weight * p * (1 - p))[:, None]) + prior
    return Calibration(centre, scale, coefficients, np.linalg.inv(curvature))


class RateSum:
    """The share of wrong labels by a calibration, over any number of blocks of pairs."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.pairs, self.wrong, self.variance = 0, 0.0, 0.0
        self.gradient = np.zeros(len(calibration.coefficients))

    def add(self, evidence: Array) -> Array:
        """Return P(the label is wrong) of each row, counted in."""
        design = self.calibration.design(evidence)
        p = np.asarray(expit(design @ self.calibration.coefficients))
        self.pairs += len(p)
        self.wrong += p.sum()
        self.variance += (p * (1 - p)).sum()
        self.gradient += (p * (1 - p)) @ design
        return p

    def know(self, pairs: int, wrong: int) -> None:
        """Count in pairs of which it is known how many are wrong."""
        self.pairs += pairs
        self.wrong += wrong

    def interval(self) -> Interval:
        """Return the share, with the interval of a beta distribution of its mean and variance.

        The variance is the delta method's, and that of the labels' own chance: the interval is for
        the wrong labels there are, not for those expected. Without evidence, and of many pairs, it
        is Jeffreys' interval of the calibration's share.
        """
        rate = self.wrong / self.pairs
        gradient = self.gradient / self.pairs
        variance = gradient @ self.calibration.covariance @ gradient
        variance += self.variance / self.pairs**2
        if not variance:
            return Interval(rate, rate, rate)
        weight = rate * (1 - rate) / variance - 1
        if weight <= 0:
            return Interval(rate, 0.0, 1.0)
        low, high = betaincinv(rate * weight, (1 - rate) * weight, [0.025, 0.975])
        return _whole(self.wrong, self.pairs * low, self.pairs * high, self.pairs)
