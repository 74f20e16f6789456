"""One score from several scorers', by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping

DECIMALS = 9
"""Kept of a mixed score: equal sums of rounded numbers come out equal."""


def mix_name(weights: Mapping[str, float]) -> str:
    """Return what a mix is called in the tables: `mix:judge*0.25+rules*0.75`, shares by name."""
    total = sum(weights.values())
    return "mix:" + "+".join(f"{name}*{weights[name] / total:g}" for name in sorted(weights))


def mixed_scores(scores: pl.DataFrame, weights: Mapping[str, float]) -> pl.DataFrame:
    """Return prompt_id, candidate_id and score: the weighted mean of the standardised scores.

    Each scorer's scores are standardised within the prompt, (score - mean) / standard deviation
    with n in the denominator, as group-relative advantages are (Shao et al., arXiv 2402.03300,
    section 4.1.2): no scale counts for more than its weight, and other prompts have no say. A
    scorer that ties all of a prompt's candidates adds nothing there. A candidate without a finite
    score by each of them has none.
    """
    named = scores.filter(pl.col("scorer").is_in(list(weights)), pl.col("score").is_finite())
    complete = named.filter(pl.len().over("candidate_id") == len(weights))
    group = ["prompt_id", "scorer"]
    # Sorted: a sum of floats depends on their order.
    score, of_prompt = pl.col("score"), pl.col("score").sort()
    deviation = (score - of_prompt.mean().over(group)) / of_prompt.std(ddof=0).over(group)
    # The deviation of equal numbers is rounding, not always 0.
    told_apart = (score.max() > score.min()).over(group)
    weight = pl.col("scorer").replace_strict(dict(weights), return_dtype=pl.Float64)
    parts = complete.sort("candidate_id", "scorer").with_columns(
        part=pl.when(told_apart).then(deviation).otherwise(0) * weight / sum(weights.values())
    )
    return parts.group_by("prompt_id", "candidate_id").agg(
        score=pl.col("part").sum().round(DECIMALS)
    )
