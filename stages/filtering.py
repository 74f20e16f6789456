"""Filters on pairs. Each rules on every pair and says why; nothing disappears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import polars as pl
import pydantic

from stages.configuration import Config
from stages.errors import DataError
from stages.tables import DECISIONS, PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1

ROUNDING = 1e-9
"""A margin that is short of its limit by no more than this reaches it."""


class FilteringConfig(Config):
    """Which filters rule on the pairs, and their limits. A limit of null turns a filter off."""

    identical: bool = True
    """Drop a pair whose two completions are the same text."""
    empty: bool = True
    """Drop a pair with a completion that is empty or only white space."""
    truncated: bool = True
    """Drop a pair with a completion that did not end by itself."""
    minimum_margin: Annotated[float, pydantic.Field(ge=0)] | None = 0.1
    """In the scorer's unit."""
    maximum_length_ratio: Annotated[float, pydantic.Field(ge=1)] | None = 3.0
    """Longer over shorter completion, in tokens."""
    maximum_similarity: Annotated[float, pydantic.Field(gt=0, le=1)] | None = 0.98
    """Normalised indel similarity of the two texts (1 is identical); drops near-identical pairs."""


class Filtered(NamedTuple):
    """What the filters kept (`pairs` rows) and what each decided (`decisions` rows)."""

    kept: pl.DataFrame
    decisions: pl.DataFrame


class _Ruling(NamedTuple):
    """One filter: its name, the defect it drops for, and its limit (None: not measured)."""

    filter: str
    reason: str
    measure: Callable[[pl.DataFrame], pl.Series]
    drops: Callable[[pl.Expr], pl.Expr]
    limit: float | None


def filter_pairs(
    pairs: pl.DataFrame, candidates: pl.DataFrame, config: FilteringConfig
) -> Filtered:
    """Return the pairs that every filter keeps, and one ruling per pair and filter.

    Every filter rules on every pair, also on those another one drops: what a changed limit would
    give can be read off the decisions.

    Raises:
        DataError: a pair's candidate is not in ``candidates``.
    """
    texts = _with_texts(pairs, candidates)
    lost = texts.filter(pl.any_horizontal(pl.col("chosen_text", "rejected_text").is_null()))
    if lost.height:
        raise DataError(
            f"{lost.height} pairs name candidates that are not there",
            expected="both candidates of every pair",
            where=f"such as {lost['pair_id'][0]}",
        )
    rulings = [_decide(texts, ruling, position) for position, ruling in enumerate(_rulings(config))]
    decisions = pl.concat([DECISIONS.empty(), *rulings]).sort("pair_id", "position")
    return Filtered(kept_pairs(pairs, decisions), decisions)


def kept_pairs(pairs: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``pairs`` that no decision drops, sorted by id."""
    dropped = decisions.filter(~pl.col("kept")).select("pair_id").unique()
    kept = pairs.join(dropped, on="pair_id", how="anti").sort("pair_id")
    return kept.select(PAIRS.column_names)


def require_kept(pairs: pl.DataFrame, decisions: pl.DataFrame) -> None:
    """Check that a pair is left.

    Raises:
        DataError: none is; says how many pairs each filter dropped.
    """
    if kept_pairs(pairs, decisions).height:
        return
    drops = decisions.filter(~pl.col("kept")).group_by("filter", "limit").len()
    taken = [
        f"{name} dropped {count}" + ("" if limit is None else f" (limit {limit:g})")
        for name, limit, count in drops.sort(-pl.col("len").cast(pl.Int64), "filter").iter_rows()
    ]
    raise DataError(
        f"nothing is left of {pairs.height} pairs: {', '.join(taken)}",
        expected="at least one pair that every filter keeps",
        where="stage filter",
        remedy="loosen the filters named above, then run `prefmill curate` on the same run",
    )


def _with_texts(pairs: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs with both completions and finish reasons, joined by id."""
    for role in ("chosen", "rejected"):
        facts = candidates.select(
            pl.col("candidate_id").alias(f"{role}_candidate_id"),
            pl.col("completion").alias(f"{role}_text"),
            pl.col("finish_reason").alias(f"{role}_finish"),
        )
        pairs = pairs.join(facts, on=f"{role}_candidate_id", how="left", validate="m:1")
    return pairs


def _rulings(config: FilteringConfig) -> list[_Ruling]:
    """Return the configured filters in the order that attributes a drop: cheapest first."""
    is_set, above, below = _is_one, _above, _below
    rulings = [
        _Ruling("identical", "chosen_equals_rejected", _identical, is_set, None),
        _Ruling("empty", "completion_empty", _empty, is_set, None),
        _Ruling("truncated", "completion_truncated", _truncated, is_set, None),
        _Ruling(
            "margin",
            "margin_below_minimum",
            lambda texts: texts["margin"],
            below(config.minimum_margin),
            config.minimum_margin,
        ),
        _Ruling(
            "length_ratio",
            "length_ratio_above_maximum",
            _length_ratio,
            above(config.maximum_length_ratio),
            config.maximum_length_ratio,
        ),
        _Ruling(
            "near_identical",
            "similarity_above_maximum",
            _similarity,
            above(config.maximum_similarity),
            config.maximum_similarity,
        ),
    ]
    switched_on = {"identical": config.identical, "empty": config.empty}
    switched_on["truncated"] = config.truncated
    return [r for r in rulings if switched_on.get(r.filter, r.limit is not None)]


def _is_one(value: pl.Expr) -> pl.Expr:
    return value == 1


def _above(limit: float | None) -> Callable[[pl.Expr], pl.Expr]:
    return lambda value: value > limit


def _below(limit: float | None) -> Callable[[pl.Expr], pl.Expr]:
    # 1.0 - 0.8 is a little below 0.2: rounding is no defect.
    return lambda value: value + ROUNDING < limit


def _decide(texts: pl.DataFrame, ruling: _Ruling, position: int) -> pl.DataFrame:
    """Return one `decisions` row per pair by one filter."""
    measured = texts.select("pair_id").with_columns(
        ruling.measure(texts).cast(pl.Float64).alias("value")
    )
    decided = measured.with_columns(
        filter=pl.lit(ruling.filter),
        position=pl.lit(position, dtype=pl.Int64),
        kept=~ruling.drops(pl.col("value")),
        limit=pl.lit(ruling.limit, dtype=pl.Float64),
    )
    reason = pl.when(~pl.col("kept")).then(pl.lit(ruling.reason)).alias("reason")
    return decided.with_columns(reason).select(DECISIONS.column_names)


def _identical(texts: pl.DataFrame) -> pl.Series:
    return texts["chosen_text"].str.strip_chars() == texts["rejected_text"].str.strip_chars()


def _empty(texts: pl.DataFrame) -> pl.Series:
    def blank(role: str) -> pl.Series:
        return texts[f"{role}_text"].str.strip_chars().str.len_bytes() == 0

    return blank("chosen") | blank("rejected")


def _truncated(texts: pl.DataFrame) -> pl.Series:
    return (texts["chosen_finish"] != "stop") | (texts["rejected_finish"] != "stop")


def _length_ratio(texts: pl.DataFrame) -> pl.Series:
    lengths = [pl.col("chosen_tokens"), pl.col("rejected_tokens")]
    longer, shorter = pl.max_horizontal(lengths), pl.min_horizontal(lengths)
    return texts.select(ratio=longer / pl.max_horizontal(shorter, pl.lit(1))).to_series()


def _similarity(texts: pl.DataFrame) -> pl.Series:
    """Return 1 - normalised indel distance per pair, in [0, 1]."""
    import numpy as np
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    chosen, rejected = texts["chosen_text"].to_list(), texts["rejected_text"].to_list()
    if not chosen:
        return pl.Series([], dtype=pl.Float64)
    # In float64: as a float32, its default, 0.98 lies above the limit 0.98.
    scorer = Indel.normalized_similarity
    return pl.Series(cpdist(chosen, rejected, scorer=scorer, dtype=np.float64, workers=-1))
