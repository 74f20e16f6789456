"""How probably each pair's label is wrong, and how many of a run's are. docs/noise.md.

The label says that the chosen answer is the better one. What bears on it are numbers: the margin
and its standard error, whether a judge's two orders agree, how the other scorers and people vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import polars as pl

from stages.noise_estimators import (
    Interval,
    RateSum,
    Tally,
    by_agreement,
    by_jury,
    by_swaps,
    calibrate,
    drawn_interval,
    over_patterns,
)
from stages.noise_voters import TRIPLET
from stages.tables import LABEL_NOISE, NOISE_RATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stages.noise_estimators import Rule
    from stages.noise_voters import NoiseConfig, Voters

VERSION = 1

STRATA = 10
"""Of the margin, at most: within one, a scorer is held to be right equally often."""

STRATUM_PAIRS = 500
"""Fewer make no stratum of their own."""

BLOCK_ROWS = 500_000
"""Pairs whose evidence is one array: bounds memory."""


class Noise(NamedTuple):
    """What came out: the run's rate, why it is none, and P(wrong) for rows of `evidence`."""

    method: Literal["calibrated", "agreement", "swaps"] | None
    interval: Interval | None
    pairs: int
    calibration_pairs: int
    note: str
    probability: Callable[[pl.DataFrame], pl.Series]


class Unselected(NamedTuple):
    """What scorers said of candidates whether or not they became a pair."""

    votes: pl.DataFrame
    """`neighbours`; asked for where several scorers made the labels."""
    contradictions: pl.DataFrame
    """`contradictions` of the judge that made the labels."""


class _Patterns(NamedTuple):
    """A method on counted patterns of evidence."""

    method: Literal["agreement", "swaps"]
    rule: Rule
    names: list[str]
    """The columns of the labels' evidence that it reads."""
    why_not: str
    """Why it can't be tried; "" if it can."""
    fit: pl.DataFrame | None = None
    """What tells of the scorers; None: the pairs themselves, in strata of the margin."""


def estimate(
    facts: pl.DataFrame,
    gold: pl.DataFrame,
    unselected: Unselected,
    voters: Voters,
    config: NoiseConfig,
) -> Noise:
    """Return the noise of all pairs' labels, by the first method that can be had.

    Calibration on gold pairs and people's votes; else the agreement of three scorers or more; else
    how often the labelling judge contradicts itself when the order is swapped. Without any, the
    method and the rate are None and ``note`` says why.

    Args:
        facts: `evidence` of all pairs.
        gold: `evidence` of the `gold_labels`, with `wrong`.
        unselected: what was said of other candidates, too.
        voters: who else scored.
        config: what is enough.
    """
    asked = facts.filter(pl.col("people") != 0).with_columns(wrong=pl.col("people") < 0)
    calibration = pl.concat([gold, asked.select(gold.columns)])
    known = calibration.height
    if known >= config.minimum_calibration_pairs and facts.height:
        return _calibrated(facts, calibration)
    missing = [f"{known} calibration pairs, {config.minimum_calibration_pairs} needed"]
    agreement = _jury if voters.several else _agreement
    for plan in (agreement(facts, unselected, voters, config), _swaps(facts, unselected, config)):
        found = None if plan.why_not else _by_patterns(facts, plan, config.seed)
        if found is not None:
            return found._replace(calibration_pairs=known)
        missing.append(plan.why_not or _NOT_BETTER_THAN_CHANCE[plan.method])
    note = f"no estimate: {'; '.join(missing)}"
    return Noise(None, None, facts.height, known, note, _unknown)


_NOT_BETTER_THAN_CHANCE = {
    "agreement": "the scorers do not agree more often than not",
    "swaps": "half of the judge's double readings or more disagree",
}


def _agreement(
    facts: pl.DataFrame, _: Unselected, voters: Voters, config: NoiseConfig
) -> _Patterns:
    why_not = _too_few(facts.height, config.minimum_pairs, "pairs")
    if len(voters.others) < TRIPLET - 1:
        why_not = f"{len(voters.others)} other scorers that had no say, {TRIPLET - 1} needed"
    names = [f"vote:{name}" for name in voters.others]
    return _Patterns("agreement", by_agreement, names, why_not)


def _jury(
    facts: pl.DataFrame, unselected: Unselected, voters: Voters, config: NoiseConfig
) -> _Patterns:
    names = [f"vote:{name}" for name in (*voters.members, *voters.others)]
    count = min(facts.height, unselected.votes.height)
    why_not = _too_few(count, config.minimum_pairs, "pairs")
    if len(names) < TRIPLET:
        why_not = f"{len(names)} scorers beside the one that mixes them, {TRIPLET} needed"
    return _Patterns("agreement", by_jury, names, why_not, unselected.votes)


def _swaps(facts: pl.DataFrame, unselected: Unselected, config: NoiseConfig) -> _Patterns:
    double = facts["order_verdict"].count()
    why_not = _too_few(double, config.minimum_pairs, "pairs judged in both orders")
    return _Patterns("swaps", by_swaps, ["order_verdict"], why_not, unselected.contradictions)


def _too_few(count: int, needed: int, what: str) -> str:
    return f"{count} {what}, {needed} needed" if count < needed else ""


def _unknown(facts: pl.DataFrame) -> pl.Series:
    return pl.Series("probability_wrong", [None] * facts.height, dtype=pl.Float64)


def _calibrated(facts: pl.DataFrame, calibration: pl.DataFrame) -> Noise:
    """Return the noise by a regression on the pairs whose better answer is known.

    Where people voted, their majority is the answer.
    """
    wrong = calibration["wrong"].to_numpy().astype(np.float64)
    fitted = calibrate(_columns(calibration), wrong)
    total = RateSum(fitted)
    for block in facts.iter_slices(BLOCK_ROWS):
        open_pairs = block.filter(pl.col("people").fill_null(0) == 0)
        total.add(_columns(open_pairs))
        total.know(block.height - open_pairs.height, int((block["people"] < 0).sum()))
    interval = total.interval()
    if not wrong.any():
        interval = interval._replace(low=0.0)

    def probability(block: pl.DataFrame) -> pl.Series:
        estimated = pl.Series(fitted.probability(_columns(block)))
        voted = pl.col("people") != 0
        known = pl.when(voted).then((pl.col("people") < 0).cast(pl.Float64)).otherwise(estimated)
        return block.select(probability_wrong=known).to_series()

    note = f"{int(wrong.sum())} of {len(wrong)} labels with a known answer are wrong"
    return Noise("calibrated", interval, facts.height, len(wrong), note, probability)


def _columns(facts: pl.DataFrame) -> NDArray[np.float64]:
    """Return the evidence as rows x 4: margin, clearness, order verdict, mean vote."""
    votes = [name for name in facts.columns if name.startswith("vote:")]
    vote = pl.mean_horizontal(votes) if votes else pl.lit(None)
    columns = facts.select("margin", "clearness", "order_verdict", vote=vote)
    return columns.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _by_patterns(facts: pl.DataFrame, plan: _Patterns, seed: int) -> Noise | None:
    """Return the noise by agreement or swaps; None: the evidence does not say it.

    Where one stratum of the margin can't be estimated, all pairs are one.
    """
    # Who abstains tells nothing, like who ties; but a pair that nobody read in both orders is open.
    known = facts.drop_nulls(plan.names) if plan.method == "swaps" else facts
    for most in (STRATA, 1) if plan.fit is None else (1,):
        edges = _edges(known["margin"], most)
        tallied = _tally(_keyed(known, edges, plan.names))
        found = _per_stratum(tallied, plan, np.random.default_rng(seed))
        if found is not None:
            break
    else:
        return None
    table, draws = found
    wrong = float((table["count"] * table["probability_wrong"]).sum())
    interval = drawn_interval(wrong, draws, known.height)

    def probability(block: pl.DataFrame) -> pl.Series:
        keys = _keyed(block, edges, plan.names)
        joined = keys.join(
            table, on=keys.columns, how="left", nulls_equal=True, maintain_order="left"
        )
        return joined["probability_wrong"]

    strata = tallied["stratum"].n_unique()
    note = f"{known.height} of {facts.height} pairs" + (
        f", {strata} strata of the margin" if plan.fit is None else ""
    )
    return Noise(plan.method, interval, facts.height, 0, note, probability)


def _edges(margins: pl.Series, most: int) -> list[float]:
    """Return the inner edges of strata of equally many pairs."""
    count = max(1, min(most, len(margins) // STRATUM_PAIRS))
    inner = [margins.quantile(place / count, "lower") for place in range(1, count)]
    return sorted({edge for edge in inner if edge is not None})


def _keyed(facts: pl.DataFrame, edges: Sequence[float], names: list[str]) -> pl.DataFrame:
    above = [(pl.col("margin") > edge).cast(pl.Int32) for edge in edges]
    stratum = pl.sum_horizontal(above) if above else pl.lit(0, dtype=pl.Int32)
    return facts.select(*names, stratum=stratum)


def _tally(patterns: pl.DataFrame) -> pl.DataFrame:
    """Return the distinct rows with their `count`, in an order of their own."""
    keys = patterns.columns
    return patterns.group_by(keys).agg(count=pl.len()).sort(keys)


def _per_stratum(
    tallied: pl.DataFrame, plan: _Patterns, rng: np.random.Generator
) -> tuple[pl.DataFrame, NDArray[np.float64]] | None:
    """Return the patterns with P(wrong), and draws of the number of wrong labels."""
    tables: list[pl.DataFrame] = []
    draws = np.zeros(1)
    for _, stratum in tallied.group_by("stratum", maintain_order=True):
        asked = _arrays(stratum.drop("stratum"))
        if plan.rule is by_agreement:
            # The scorer that made the labels votes for each of them.
            ones = np.ones(len(asked.counts))
            asked = asked._replace(patterns=np.column_stack([ones, asked.patterns]))
        fit = asked if plan.fit is None else _arrays(_tally(plan.fit))
        found = over_patterns(plan.rule, fit, asked, rng)
        if found is None:
            return None
        wrong, drawn = found
        tables.append(stratum.with_columns(probability_wrong=pl.Series(wrong)))
        draws = draws + drawn
    return pl.concat(tables), draws


def _arrays(tallied: pl.DataFrame) -> Tally:
    patterns = tallied.drop("count").fill_null(0).to_numpy().astype(np.float64)
    return Tally(patterns, tallied["count"].to_numpy().astype(np.float64))


def noise_rows(facts: pl.DataFrame, noise: Noise) -> pl.DataFrame:
    """Return rows of `label_noise` for some pairs' `evidence`."""
    votes = [name for name in facts.columns if name.startswith("vote:")]

    def counted(vote: int) -> pl.Expr:
        found = [(pl.col(name) == vote).fill_null(value=False) for name in votes]
        return pl.sum_horizontal(found).cast(pl.Int64) if found else pl.lit(0, dtype=pl.Int64)

    return facts.with_columns(
        noise.probability(facts).alias("probability_wrong"),
        scorers_for=counted(1),
        scorers_against=counted(-1),
        people_vote=pl.col("people").cast(pl.Float64),
    ).select(LABEL_NOISE.column_names)


def rate_row(noise: Noise, scorer: str) -> pl.DataFrame:
    """Return the one row of `noise_rates`."""
    rate, low, high = noise.interval or (None, None, None)
    row = {
        "scorer": scorer,
        "method": noise.method,
        "rate": rate,
        "low": low,
        "high": high,
        "pairs": noise.pairs,
        "calibration_pairs": noise.calibration_pairs,
        "note": noise.note,
    }
    return pl.DataFrame([row], schema=NOISE_RATES.empty().schema)
