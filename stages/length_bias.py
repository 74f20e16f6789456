"""How far length alone tells the chosen answer, and how it tells less: by dropping or by weights.

The method is the balancing of Singhal et al. 2023 (arXiv 2310.03716, length balancing): among pairs
whose lengths differ by about as much, the longer answer should win about as often as the shorter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import polars as pl

Z_95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

GAP = pl.col("chosen_tokens") - pl.col("rejected_tokens")

STRATUM, SIDE = ("stratum",), ("stratum", "side")

COUNTED = pl.col("standing").cast(pl.Int32)

OTHERS = COUNTED.sum().over(STRATUM) - COUNTED.sum().over(SIDE)
"""How many standing pairs of the stratum are on the other side."""


class LengthBias(NamedTuple):
    """How the chosen answers' lengths compare with the rejected ones'; null: no pair differs."""

    bias: float | None
    """How much more often than not one guesses the chosen from the token gap alone: `advantage`."""
    longer_wins: float | None
    """Of the pairs whose lengths differ, the share whose chosen is the longer."""
    low: float | None
    """Lower end of its 95 % interval (Wilson 1927)."""
    high: float | None
    """Upper end."""
    correlation: float | None
    """Point-biserial, between the signed gap and being chosen, over both answers of each pair."""


def length_bias(pairs: pl.DataFrame) -> LengthBias:
    """Return the length bias of ``pairs`` (pair_id, chosen_tokens, rejected_tokens).

    Each pair counts with its gap g as chosen and -g as rejected, so that both means are zero and
    the correlation is mean(g) / sqrt(mean(g^2)).
    """
    gap = GAP.filter(GAP != 0).cast(pl.Float64)
    facts = pairs.select(
        count=gap.len(), longer=(gap > 0).mean(), r=gap.mean() / (gap**2).mean().sqrt()
    )
    count, longer, correlation = facts.row(0)
    if not count:
        return LengthBias(None, None, None, None, None)
    bias = advantage(pairs).max()
    assert isinstance(bias, float), "a measure is a float"
    return LengthBias(bias, longer, *_wilson(longer, count), correlation)


def advantage(facts: pl.DataFrame) -> pl.Series:
    """Return the bias that is left if this pair is kept and those after it are dropped.

    A stratum holds the pairs whose token gap lies between two powers of two. Who knows a pair's
    gap guesses best that its stratum's majority, longer or shorter, won; the bias is the share of
    right guesses less that of wrong ones, ``sum |longer - shorter| / pairs`` over the strata. The
    majority's pairs beyond as many as the minority has make it up. Each of them adds as much as any
    other, so they stand in the order of their ids, which are hashes: dropping those above a limit
    drops the fewest pairs that reach it, and from every stratum in proportion. All other pairs
    have 0. The largest value is the bias before, the largest of those kept the bias after.

    Null for pairs that an earlier filter drops (``standing``, if there): they don't count.
    """
    placed = _placed(facts)
    # Without the ids, which are most of it: ten million pairs are ranked in 1 GB.
    ordered = placed.with_columns(facts["pair_id"]).sort("pair_id").drop("pair_id")
    ordered = ordered.with_columns(place=COUNTED.cum_sum().over(SIDE), others=OTHERS)
    unmatched = pl.col("standing") & (pl.col("side") != 0) & (pl.col("place") > pl.col("others"))
    turn = unmatched.cast(pl.Int64).cum_sum()
    bias = turn / (COUNTED.sum() - turn.max() + turn)
    value = pl.when(unmatched).then(bias).when("standing").then(0.0).alias("value")
    return ordered.select("index", value).sort("index")["value"]


def balancing_weights(facts: pl.DataFrame, limit: float) -> pl.Series:
    """Return weights, of mean 1, under which the bias of `advantage` is ``limit`` or less.

    The matching weights of Li and Greene 2013 (doi:10.1515/ijb-2012-0030), min(e, 1 - e) over the
    probability of the side that a pair is on, where e is the share of its stratum whose longer
    answer won: 1 for the stratum's minority, minority / majority for its majority. They undo the
    bias wholly; only as much of them is taken as the limit asks for. With surplus X (the sum of
    |longer - shorter|) of N pairs and B = X / N above the limit b, the share
    s = b (1 - B) / (B (1 - b)) of the surplus stays: w = m + s (1 - m) of matching weights m, then
    scaled. No weight is above (1 - b) / (1 - B), and none below b / B.

    What no pair balances has weight 0 if the limit is 0, or if no stratum has both sides; the
    others then have a mean of 1. Null for pairs that an earlier filter drops.
    """
    counted = _placed(facts).with_columns(others=OTHERS, own=COUNTED.sum().over(SIDE))
    majority = (pl.col("side") != 0) & (pl.col("own") > pl.col("others"))
    wanted = pl.when(majority).then(pl.col("others") / pl.col("own")).otherwise(1.0)
    match = counted.select(pl.when("standing").then(wanted)).to_series()
    pairs, matched = match.count(), float(match.sum())
    surplus, left = pairs - matched, 1.0
    if surplus > limit * pairs:
        left = limit * matched / (surplus * (1 - limit))
    weight = match + left * (1 - match)
    positive = weight.filter(weight > 0)
    return weight * (len(positive) / positive.sum()) if len(positive) else weight


def _placed(facts: pl.DataFrame) -> pl.DataFrame:
    """Return each pair's stratum, its side there (the sign of its gap), and whether it stands."""
    if "standing" not in facts.columns:
        facts = facts.with_columns(standing=pl.lit(value=True))
    # A logarithm would round; the number of bits doesn't.
    bits = GAP.abs().cast(pl.Int64).bitwise_leading_zeros()
    placed = facts.select("standing", side=GAP.sign().cast(pl.Int8), stratum=bits.cast(pl.UInt8))
    return placed.with_row_index()


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share."""
    z2 = Z_95**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
