"""How far length alone tells the chosen answer, and which pairs to drop so that it tells less.

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
    if "standing" not in facts.columns:
        facts = facts.with_columns(standing=pl.lit(value=True))
    # A logarithm would round; the number of bits doesn't.
    bits = GAP.abs().cast(pl.Int64).bitwise_leading_zeros()
    placed = facts.select(
        "pair_id", "standing", side=GAP.sign().cast(pl.Int8), stratum=bits.cast(pl.UInt8)
    ).with_row_index()
    standing = pl.col("standing").cast(pl.Int32)
    stratum, side = ["stratum"], ["stratum", "side"]
    # Without the ids, which are most of it: ten million pairs are ranked in 1 GB.
    ordered = placed.sort("pair_id").drop("pair_id")
    ordered = ordered.with_columns(
        place=standing.cum_sum().over(side),
        others=standing.sum().over(stratum) - standing.sum().over(side),
    )
    unmatched = pl.col("standing") & (pl.col("side") != 0) & (pl.col("place") > pl.col("others"))
    turn = unmatched.cast(pl.Int64).cum_sum()
    bias = turn / (standing.sum() - turn.max() + turn)
    value = pl.when(unmatched).then(bias).when("standing").then(0.0).alias("value")
    return ordered.select("index", value).sort("index")["value"]


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share."""
    z2 = Z_95**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
