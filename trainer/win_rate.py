"""How often a policy's answers beat another's, and how often they would at equal lengths.

The correction is AlpacaEval 2's (Dubois et al. 2024, arXiv 2404.04475): a logistic regression of
who wins on the difference in length, read off where that difference is zero. Its term for the
prompts' difficulty is left out: it is fitted over many models, and here there are two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from trainer.bootstrap import interval, resampled_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

RIDGE = 0.01
"""Penalty on half the squared coefficients, in prompts: finite also when one side wins all."""

LONGEST_STEP = 1.0
"""Of Newton's method, in logits: a full one can overshoot where nearly all duels end alike."""

STEPS = 200
PRECISE = 1e-10


def duels(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return prompt_id, stratum, decoding, win, length_gap: each new answer against each former.

    ``win`` is 1 where the new answer's score is higher, 0.5 where both are equal, else 0;
    ``length_gap`` is how many tokens longer the new one is. Answers without a score don't meet.

    Args:
        before: prompt_id, stratum, decoding, score, completion_tokens.
        after: the same of the new policy.
    """
    keys = ["prompt_id", "stratum", "decoding"]
    old, new = (
        side.select(*keys, "score", tokens=pl.col("completion_tokens").cast(pl.Float64)).drop_nulls(
            "score"
        )
        for side in (before, after)
    )
    score, former = pl.col("score"), pl.col("score_former")
    return (
        new.join(old, on=keys, suffix="_former")
        .select(
            *keys,
            win=(score > former).cast(pl.Float64) + 0.5 * (score == former),
            length_gap=pl.col("tokens") - pl.col("tokens_former"),
        )
        .sort(keys)
    )


def judged_duels(
    before: pl.DataFrame, after: pl.DataFrame, judgments: pl.DataFrame
) -> pl.DataFrame:
    """Return what `duels` does, of a judge that was shown both answers, and `flipped`.

    A row for each two answers with the same sample index. ``win`` is the mean of the verdicts for
    the new answer, null without any, and 0.5 where both are the same word for word. ``flipped`` is
    the share of verdicts whose two orders disagree, null where no two orders were asked for.

    Args:
        before: prompt_id, stratum, decoding, sample_index, candidate_id, completion,
            completion_tokens.
        after: the same of the new policy.
        judgments: candidate_id, other_candidate_id, order, flag and, for candidate_id, score.
    """
    keys = ["prompt_id", "stratum", "decoding"]
    said = judgments.drop_nulls(["other_candidate_id", "score"]).select(
        "score",
        "order",
        own="candidate_id",
        former="other_candidate_id",
        flipped=pl.col("flag").is_not_null(),
    )
    mirrored = said.with_columns(own="former", former="own", score=1 - pl.col("score"))
    both_orders = pl.col("order").n_unique() > 1
    verdicts = (
        pl.concat([said, mirrored])
        .group_by("own", "former")
        .agg(pl.col("score").mean(), flipped=pl.when(both_orders).then(pl.col("flipped").mean()))
    )
    tokens = pl.col("completion_tokens").cast(pl.Float64)
    old, new = (
        side.select(*keys, "sample_index", "candidate_id", "completion", tokens=tokens)
        for side in (before, after)
    )
    same = pl.col("completion") == pl.col("completion_former")
    return (
        new.join(old, on=[*keys, "sample_index"], suffix="_former")
        .join(
            verdicts,
            left_on=["candidate_id", "candidate_id_former"],
            right_on=["own", "former"],
            how="left",
        )
        .select(
            *keys,
            win=pl.when(same).then(0.5).otherwise("score"),
            length_gap=pl.col("tokens") - pl.col("tokens_former"),
            flipped="flipped",
        )
        .sort(keys)
    )


def length_controlled(
    met: pl.DataFrame, seed: int, resamples: int
) -> tuple[float, tuple[float, float]]:
    """Return the win rate at equal lengths of `duels`, and its 95 % bootstrap interval.

    logit P(win) = theta + phi * tanh(gap / std(gap)), by eq. 1 of the paper; every prompt weighs
    the same, and the win rate is the logistic function of theta. The bootstrap redraws prompts and
    takes one Newton step from the estimate on each draw (Moulton and Zeger 1991, Computational
    Statistics & Data Analysis 11). Where all gaps are equal nothing is corrected.
    """
    win, gap = met["win"].to_numpy(), met["length_gap"].to_numpy()
    _, prompt, answers = np.unique(met["prompt_id"], return_inverse=True, return_counts=True)
    weight = 1 / answers[prompt]
    spread = gap.std()
    bent = np.tanh(gap / spread) if spread else np.zeros_like(gap)
    features = np.column_stack([np.ones_like(bent), bent])
    coefficients: NDArray[np.float64] = np.zeros(2)
    for _ in range(STEPS):
        slopes, curvatures = _derivatives(features, win, weight, coefficients)
        step = _newton(slopes.sum(0)[None], curvatures.sum(0)[None], coefficients)[0]
        size = np.abs(step).max()
        coefficients = coefficients + step / max(1.0, size / LONGEST_STEP)
        if size < PRECISE:
            break
    slopes, curvatures = _derivatives(features, win, weight, coefficients)
    prompts = len(answers)
    each = np.column_stack([slopes, curvatures.reshape(-1, 4)])
    each = np.column_stack([np.bincount(prompt, column, prompts) for column in each.T])
    drawn = resampled_means(each, seed, resamples) * prompts
    steps = _newton(drawn[:, :2], drawn[:, 2:].reshape(-1, 2, 2), coefficients)
    return float(_logistic(coefficients[0])), interval(_logistic(coefficients[0] + steps[:, 0]))


def _derivatives(
    features: NDArray[np.float64],
    win: NDArray[np.float64],
    weight: NDArray[np.float64],
    coefficients: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each duel's gradient (duels, 2) and curvature (duels, 2, 2) of the log-likelihood."""
    chance = _logistic(features @ coefficients)
    slopes = (weight * (win - chance))[:, None] * features
    squares = features[:, :, None] * features[:, None, :]
    return slopes, (weight * chance * (1 - chance))[:, None, None] * squares


def _newton(
    slopes: NDArray[np.float64],
    curvatures: NDArray[np.float64],
    coefficients: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the Newton steps (draws, 2) of the penalised log-likelihoods at ``coefficients``."""
    slopes = slopes - RIDGE * coefficients
    curvatures = curvatures + RIDGE * np.eye(2)
    return np.asarray(np.linalg.solve(curvatures, slopes[:, :, None])[:, :, 0], np.float64)


def _logistic(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    chances: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits / 2))
    return chances
