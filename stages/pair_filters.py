"""What the filters measure on pairs' numbers: one value per pair, null where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable


def length_ratio(facts: pl.DataFrame) -> pl.Series:
    """Return the longer over the shorter completion, in tokens; one of none counts as one."""
    lengths = [pl.col("chosen_tokens"), pl.col("rejected_tokens")]
    longer, shorter = pl.max_horizontal(lengths), pl.min_horizontal(lengths)
    return facts.select(ratio=longer / pl.max_horizontal(shorter, pl.lit(1))).to_series()


def length_gap(facts: pl.DataFrame) -> pl.Series:
    """Return how many tokens the longer completion has more."""
    return (facts["chosen_tokens"] - facts["rejected_tokens"]).abs()


def normalised_margin(facts: pl.DataFrame) -> pl.Series:
    """Return each margin over the population standard deviation of its scorer's scores.

    Those of all candidates that a proposed pair of that scorer holds, each once. Null where they
    are all the same.
    """
    scored = pl.concat(
        facts.select(
            "scorer",
            candidate=pl.col(f"{role}_candidate_id"),
            score=pl.col(f"{role}_score"),
        )
        for role in ("chosen", "rejected")
    ).unique()
    score = pl.col("score")
    # Sorted: a sum of floats depends on its order.
    spreads = (
        scored.sort("scorer", "score")
        .group_by("scorer", maintain_order=True)
        .agg(spread=pl.when(score.max() > score.min()).then(score.std(ddof=0)))
    )
    spread = facts.select("scorer").join(spreads, on="scorer", how="left", maintain_order="left")
    return facts["margin"] / spread["spread"]


def place(*group: str) -> Callable[[pl.DataFrame], pl.Series]:
    """Return a measure of each pair's place, from 1, among its group's pairs still standing.

    The widest margin first, then the smallest pair id. A pair that an earlier filter drops gets
    the place it would have, and takes up none.
    """

    def measure(facts: pl.DataFrame) -> pl.Series:
        numbered = facts.select("margin", "pair_id", "standing", *group).with_row_index("row")
        best_first = numbered.sort("margin", "pair_id", descending=[True, False])
        standing = pl.col("standing").cast(pl.Int64)
        ahead = (standing.cum_sum() - standing).over(group)
        return best_first.with_columns(place=ahead + 1).sort("row")["place"]

    return measure
