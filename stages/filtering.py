"""Filters on pairs. Each rules on every pair and says why; nothing disappears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import polars as pl
import pydantic
import pydantic_core

from stages import pair_filters, text_filters
from stages.configuration import NOT_EMPTY, Config
from stages.errors import DataError
from stages.tables import DECISIONS, PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Measure = Callable[[pl.DataFrame], pl.Series]
    Drops = Callable[[pl.Expr], pl.Expr]
    _Limited = tuple[Callable[[float], Drops], float | None, str, str, Measure]

VERSION = 1

ROUNDING = 1e-9
"""A margin or score that is short of its limit by no more than this reaches it."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Cap = Annotated[int, pydantic.Field(ge=1)]
TEXT_COLUMNS = ("chosen_text", "rejected_text", "chosen_finish", "rejected_finish")

LanguageCode = Annotated[str, pydantic.Field(pattern="^[a-z]{2,3}$")]


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


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
    minimum_normalised_margin: Annotated[float, pydantic.Field(ge=0)] | None = None
    """In standard deviations of the scorer's scores over the proposed pairs' answers."""
    maximum_length_gap_tokens: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Between the two completions, whichever is longer."""
    minimum_prompt_success: Share | None = None
    """Share of the prompt's scored candidates that succeed; drops prompts that are too hard."""
    maximum_prompt_success: Share | None = None
    """The same share; drops prompts that are too easy."""
    success_score: float = 1.0
    """A candidate that the pair's scorer gives so much succeeds."""
    refusal: Literal["chosen", "both"] | None = None
    """Drop a pair whose chosen refuses, or only one of which both do; English openings."""
    maximum_repetition: Share | None = None
    """Share of the chosen's word 4-grams that repeat an earlier one (seq-rep-4)."""
    language: (
        Annotated[tuple[LanguageCode, ...], NOT_EMPTY, pydantic.BeforeValidator(_listed)] | None
    ) = None
    """ISO 639 code or codes; drops a pair whose chosen is surely in another language."""
    maximum_pairs_per_prompt: Cap | None = None
    """Keeps the widest margins of those that the filters above keep; equal ones by pair id."""
    maximum_pairs_per_source: Cap | None = None
    """The same, per source and split, after the cap per prompt."""

    @pydantic.model_validator(mode="after")
    def _band_is_not_empty(self) -> Self:
        low, high = self.minimum_prompt_success, self.maximum_prompt_success
        if low is not None and high is not None and low > high:
            raise pydantic_core.PydanticCustomError(
                "band", "minimum_prompt_success is above maximum_prompt_success"
            )
        return self

    @property
    def needs_prompts(self) -> bool:
        """Whether a filter asks where a pair's prompt came from."""
        return self.maximum_pairs_per_source is not None

    @property
    def needs_scores(self) -> bool:
        """Whether a filter asks for the scores of the candidates that no pair holds."""
        return (self.minimum_prompt_success, self.maximum_prompt_success) != (None, None)


class Filtered(NamedTuple):
    """What the filters kept (`pairs` rows) and what each decided (`decisions` rows)."""

    kept: pl.DataFrame
    decisions: pl.DataFrame


class _Ruling(NamedTuple):
    """One filter: its name, the defect it drops for, and its limit (None: it has none)."""

    filter: str
    reason: str
    measure: Measure
    drops: Drops
    limit: float | None
    of_texts: bool = False
    """Measured with the texts at hand, a shard at a time; the others on all pairs at once."""


def filter_pairs(
    pairs: pl.DataFrame,
    candidates: pl.DataFrame,
    config: FilteringConfig,
    prompts: pl.DataFrame | None = None,
    scores: pl.DataFrame | None = None,
) -> Filtered:
    """Return the pairs that every filter keeps, and one ruling per pair and filter.

    `measure`, `rule` and `decisions` in one call, for pairs that are all at hand.
    """
    ruled = rule(measure(pairs, candidates, config, prompts, scores), config)
    decided = decisions(ruled, config)
    return Filtered(kept_pairs(pairs, decided), decided)


def measure(
    pairs: pl.DataFrame,
    candidates: pl.DataFrame,
    config: FilteringConfig,
    prompts: pl.DataFrame | None = None,
    scores: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return one row of numbers per pair: its `pairs` columns, and what filters measure on texts.

    Pairs can be measured in any number of calls, all pairs of a prompt in one; nothing here
    depends on other prompts. ``prompts`` and ``scores`` are asked for by ``config.needs_prompts``
    and ``config.needs_scores``.

    Raises:
        DataError: a pair's candidate is not in ``candidates``, or its prompt not in ``prompts``.
    """
    facts = _with_texts(pairs, candidates)
    if config.needs_prompts:
        facts = _with_sources(facts, prompts)
    if config.needs_scores:
        facts = _with_success(facts, scores, config.success_score)
    measured = [_measured(facts, ruling) for ruling in _rulings(config) if ruling.of_texts]
    return facts.drop(TEXT_COLUMNS).with_columns(measured)


def rule(facts: pl.DataFrame, config: FilteringConfig) -> pl.DataFrame:
    """Return all pairs' ``facts`` with every filter's measure, whether it keeps, and `standing`.

    Every filter rules on every pair, also on those another one drops: what a changed limit would
    give can be read off. What a filter cannot measure on a pair (value null), it keeps.
    """
    facts = facts.with_columns(standing=pl.lit(value=True))
    for ruling in _rulings(config):
        value, kept = f"value:{ruling.filter}", f"kept:{ruling.filter}"
        if not ruling.of_texts:
            facts = facts.with_columns(_measured(facts, ruling))
        keeps = ~ruling.drops(pl.col(value)).fill_null(value=False)
        facts = facts.with_columns(keeps.alias(kept))
        facts = facts.with_columns(standing=pl.col("standing") & pl.col(kept))
    return facts


def decisions(ruled: pl.DataFrame, config: FilteringConfig) -> pl.DataFrame:
    """Return `decisions` rows, one per pair of ``ruled`` and filter, sorted by pair and place."""
    of_filters = [DECISIONS.empty()]
    for position, ruling in enumerate(_rulings(config)):
        kept = pl.col(f"kept:{ruling.filter}")
        decided = ruled.select(
            "pair_id",
            filter=pl.lit(ruling.filter),
            position=pl.lit(position, dtype=pl.Int64),
            kept=kept,
            reason=pl.when(~kept).then(pl.lit(ruling.reason)),
            value=pl.col(f"value:{ruling.filter}"),
            limit=pl.lit(ruling.limit, dtype=pl.Float64),
        )
        of_filters.append(decided)
    return pl.concat(of_filters).sort("pair_id", "position")


def kept_pairs(pairs: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``pairs`` that no decision drops, sorted by id."""
    dropped = decisions.filter(~pl.col("kept")).select("pair_id").unique()
    kept = pairs.join(dropped, on="pair_id", how="anti").sort("pair_id")
    return kept.select(PAIRS.column_names)


def require_kept(pairs: int, decisions: pl.LazyFrame) -> None:
    """Check that one of so many pairs is left.

    Raises:
        DataError: none is; says how many pairs each filter dropped.
    """
    dropping = decisions.filter(~pl.col("kept"))
    if dropping.select(pl.col("pair_id").n_unique()).collect().item() < pairs:
        return
    drops = dropping.group_by("filter", "limit").len().collect()
    taken = [
        f"{name} dropped {count}" + ("" if limit is None else f" (limit {limit:g})")
        for name, limit, count in drops.sort(-pl.col("len").cast(pl.Int64), "filter").iter_rows()
    ]
    raise DataError(
        f"nothing is left of {pairs} pairs: {', '.join(taken)}",
        expected="at least one pair that every filter keeps",
        where="stage filter",
        remedy="loosen the filters named above, then run `prefmill curate` on the same run",
    )


def _with_texts(pairs: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs with both completions and finish reasons, joined by id."""
    facts = pairs
    for role in ("chosen", "rejected"):
        of_role = candidates.select(
            pl.col("candidate_id").alias(f"{role}_candidate_id"),
            pl.col("completion").alias(f"{role}_text"),
            pl.col("finish_reason").alias(f"{role}_finish"),
        )
        facts = facts.join(of_role, on=f"{role}_candidate_id", how="left", validate="m:1")
    lost = facts.filter(pl.any_horizontal(pl.col("chosen_text", "rejected_text").is_null()))
    if lost.height:
        raise DataError(
            f"{lost.height} pairs name candidates that are not there",
            expected="both candidates of every pair",
            where=f"such as {lost['pair_id'][0]}",
        )
    return facts


def _with_sources(facts: pl.DataFrame, prompts: pl.DataFrame | None) -> pl.DataFrame:
    """Return ``facts`` with each prompt's source and split."""
    if prompts is None:
        raise DataError("no prompts are given", expected="their sources, to cap pairs per source")
    sources = prompts.select("prompt_id", "source", "split")
    facts = facts.join(sources, on="prompt_id", how="left", validate="m:1")
    lost = facts.filter(pl.col("source").is_null())
    if lost.height:
        raise DataError(
            f"{lost.height} pairs name prompts that are not there",
            expected="the prompt of every pair",
            where=f"such as {lost['pair_id'][0]}",
        )
    return facts


def _with_success(
    facts: pl.DataFrame, scores: pl.DataFrame | None, success_score: float
) -> pl.DataFrame:
    """Return ``facts`` with `prompt_success`: of the prompt's scored candidates, who succeed."""
    if scores is None:
        raise DataError("no scores are given", expected="every candidate's, to see who succeeds")
    scored = scores.filter(pl.col("score").is_finite())
    succeeds = pl.col("score") + ROUNDING >= success_score
    of_prompt = scored.group_by("prompt_id", "scorer").agg(prompt_success=succeeds.sum() / pl.len())
    return facts.join(of_prompt, on=["prompt_id", "scorer"], how="left", validate="m:1")


def _rulings(config: FilteringConfig) -> list[_Ruling]:
    """Return the configured filters in the order that attributes a drop: cheapest first."""
    return [*_flags(config), *_of_numbers(config), *_of_texts(config), *_caps(config)]


def _flags(config: FilteringConfig) -> list[_Ruling]:
    asked = [
        (config.identical, "identical", "chosen_equals_rejected", _identical),
        (config.empty, "empty", "completion_empty", _empty),
        (config.truncated, "truncated", "completion_truncated", _truncated),
    ]
    return [
        _Ruling(name, reason, measure, _is_one, None, of_texts=True)
        for on, name, reason, measure in asked
        if on
    ]


def _of_numbers(config: FilteringConfig) -> list[_Ruling]:
    asked: list[_Limited] = [
        (_below, config.minimum_margin, "margin", "margin_below_minimum", _column("margin")),
        (
            _below,
            config.minimum_normalised_margin,
            "normalised_margin",
            "normalised_margin_below_minimum",
            pair_filters.normalised_margin,
        ),
        (
            _above,
            config.maximum_length_ratio,
            "length_ratio",
            "length_ratio_above_maximum",
            pair_filters.length_ratio,
        ),
        (
            _above,
            config.maximum_length_gap_tokens,
            "length_gap",
            "length_gap_above_maximum",
            pair_filters.length_gap,
        ),
        (
            _below,
            config.minimum_prompt_success,
            "prompt_too_hard",
            "prompt_success_below_minimum",
            _column("prompt_success"),
        ),
        (
            _above,
            config.maximum_prompt_success,
            "prompt_too_easy",
            "prompt_success_above_maximum",
            _column("prompt_success"),
        ),
    ]
    return _limited(asked)


def _of_texts(config: FilteringConfig) -> list[_Ruling]:
    languages = config.language or ()
    reason = f"refusal_in_{config.refusal}"
    refusal = _Ruling("refusal", reason, _refusal(config), _is_one, None, of_texts=True)
    asked: list[_Limited] = [
        (
            _above,
            config.maximum_repetition,
            "repetition",
            "repetition_above_maximum",
            lambda facts: text_filters.repetition(facts["chosen_text"]),
        ),
        (
            _above,
            config.maximum_similarity,
            "near_identical",
            "similarity_above_maximum",
            lambda facts: text_filters.similarity(facts["chosen_text"], facts["rejected_text"]),
        ),
        (
            _above,
            text_filters.LANGUAGE_SHARE if languages else None,
            "language",
            "language_not_asked_for",
            lambda facts: text_filters.other_language(facts["chosen_text"], languages),
        ),
    ]
    return [*([refusal] if config.refusal else []), *_limited(asked, of_texts=True)]


def _caps(config: FilteringConfig) -> list[_Ruling]:
    of_prompt, of_source = config.maximum_pairs_per_prompt, config.maximum_pairs_per_source
    by_source = pair_filters.place("source", "split")
    return _limited(
        [
            (
                _above,
                of_prompt,
                "pairs_per_prompt",
                "per_prompt_cap",
                pair_filters.place("prompt_id"),
            ),
            (_above, of_source, "pairs_per_source", "per_source_cap", by_source),
        ]
    )


def _limited(asked: Sequence[_Limited], *, of_texts: bool = False) -> list[_Ruling]:
    """Return the rulings that have a limit."""
    return [
        _Ruling(name, reason, measure, drops(limit), limit, of_texts)
        for drops, limit, name, reason, measure in asked
        if limit is not None
    ]


def _above(limit: float) -> Drops:
    return lambda value: value > limit


def _below(limit: float) -> Drops:
    # 1.0 - 0.8 is a little below 0.2: rounding is no defect.
    return lambda value: value + ROUNDING < limit


def _is_one(value: pl.Expr) -> pl.Expr:
    return value == 1


def _measured(facts: pl.DataFrame, ruling: _Ruling) -> pl.Series:
    return ruling.measure(facts).cast(pl.Float64).alias(f"value:{ruling.filter}")


def _column(name: str) -> Measure:
    return lambda facts: facts[name]


def _identical(facts: pl.DataFrame) -> pl.Series:
    return text_filters.identical(facts["chosen_text"], facts["rejected_text"])


def _empty(facts: pl.DataFrame) -> pl.Series:
    return text_filters.empty(facts["chosen_text"]) | text_filters.empty(facts["rejected_text"])


def _truncated(facts: pl.DataFrame) -> pl.Series:
    return (facts["chosen_finish"] != "stop") | (facts["rejected_finish"] != "stop")


def _refusal(config: FilteringConfig) -> Measure:
    def measure(facts: pl.DataFrame) -> pl.Series:
        chosen = text_filters.refuses(facts["chosen_text"])
        if config.refusal == "chosen":
            return chosen
        return chosen & text_filters.refuses(facts["rejected_text"])

    return measure
