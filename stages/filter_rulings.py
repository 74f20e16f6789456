"""The filters, in their order: what each measures, when it drops, and what it then says."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from stages import pair_filters, score_limits, sensitive_text, text_filters
from stages.length_bias import advantage, balancing_weights
from stages.near_duplicates import duplicate_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stages.filter_settings import FilteringConfig

    Measure = Callable[[pl.DataFrame], pl.Series]
    Drops = Callable[[pl.Expr], pl.Expr]
    _Limited = tuple[Callable[[float], Drops], float | None, str, str, Measure]

LENGTH_WEIGHT = "length_weight"
"""The filter whose values are what the pairs count in training."""

ROUNDING = 1e-9
"""A margin or score that is short of its limit by no more than this reaches it."""


class Ruling(NamedTuple):
    """One filter: its name, the defect it drops for, and its limit (None: it has none)."""

    filter: str
    reason: str
    measure: Measure
    drops: Drops
    limit: float | None
    of_texts: bool = False
    """Measured a shard at a time, texts and scores at hand; the others on all pairs at once."""


def rulings(config: FilteringConfig, earlier: pl.DataFrame | None = None) -> list[Ruling]:
    """Return the configured filters in the order that attributes a drop: cheapest first.

    ``earlier`` are pairs kept by earlier runs: pair_id and signature.
    """
    return [
        *_flags(config),
        *_of_numbers(config),
        *_of_scores(config),
        *_of_texts(config),
        *_of_duplicates(config, earlier),
        *_caps(config),
        *_of_lengths(config),
    ]


def _flags(config: FilteringConfig) -> list[Ruling]:
    asked = [
        (config.identical, "identical", "chosen_equals_rejected", _identical),
        (config.empty, "empty", "completion_empty", _empty),
        (config.truncated, "truncated", "completion_truncated", _truncated),
    ]
    return [
        Ruling(name, reason, measure, _is_one, None, of_texts=True)
        for on, name, reason, measure in asked
        if on
    ]


def _of_numbers(config: FilteringConfig) -> list[Ruling]:
    asked: list[_Limited] = [
        (
            _below,
            0.0 if config.edit_scored_worse else None,
            "edit_scored_worse",
            "edit_scored_worse",
            _column("margin"),
        ),
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
        (
            _above,
            config.maximum_label_noise,
            "label_noise",
            "probability_wrong_above_maximum",
            _column("probability_wrong"),
        ),
    ]
    return _limited(asked)


def _of_scores(config: FilteringConfig) -> list[Ruling]:
    asked: list[_Limited] = []
    for limit in config.score_limits:
        name, defect = f"score:{limit.scorer}:{limit.of}", f"{limit.scorer}_of_{limit.of}"
        low, high = (
            partial(score_limits.lowest, limit=limit),
            partial(score_limits.highest, limit=limit),
        )
        asked += [
            (_below, limit.minimum, f"{name}:minimum", f"{defect}_below_minimum", low),
            (_above, limit.maximum, f"{name}:maximum", f"{defect}_above_maximum", high),
        ]
    return _limited(asked, of_texts=True)


def _of_texts(config: FilteringConfig) -> list[Ruling]:
    languages = config.language or ()
    reason = f"refusal_in_{config.refusal}"
    refusal = Ruling("refusal", reason, _refusal(config), _is_one, None, of_texts=True)
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
        (
            _above,
            0 if config.personal_data else None,
            "personal_data",
            "personal_data_found",
            _in_both(partial(sensitive_text.personal_data, kinds=config.personal_data or ())),
        ),
        (
            _above,
            0 if config.secrets else None,
            "secrets",
            "secret_found",
            _in_both(sensitive_text.secrets),
        ),
    ]
    return [*([refusal] if config.refusal else []), *_limited(asked, of_texts=True)]


def _of_duplicates(config: FilteringConfig, earlier: pl.DataFrame | None) -> list[Ruling]:
    asked = config.near_duplicates
    if asked is None:
        return []

    def measure(facts: pl.DataFrame) -> pl.Series:
        of_rows = pl.col("signature").list.to_array(asked.permutations)
        before = facts.clear() if earlier is None else earlier.with_columns(of_rows)
        dropped = duplicate_pairs(facts, before, asked)["pair_id"]
        is_dropped = pl.col("pair_id").is_in(dropped.implode())
        return facts.select(pl.when("standing").then(is_dropped)).to_series()

    return [Ruling("near_duplicate", "near_duplicate_of_a_pair", measure, _is_one, None)]


def _caps(config: FilteringConfig) -> list[Ruling]:
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


def _of_lengths(config: FilteringConfig) -> list[Ruling]:
    """Return the last filter: what any other one drops would undo the balance."""
    limit = config.maximum_length_bias
    if limit is None or config.length_bias == "drop":
        return _limited([(_above, limit, "length_bias", "length_bias_above_maximum", advantage)])
    weights = partial(balancing_weights, limit=limit)
    # The limit is the bias's, no weight's.
    return [Ruling(LENGTH_WEIGHT, "nothing_balances_its_length", weights, _is_zero, None)]


def _limited(asked: Sequence[_Limited], *, of_texts: bool = False) -> list[Ruling]:
    """Return the rulings that have a limit."""
    return [
        Ruling(name, reason, measure, drops(limit), limit, of_texts)
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


def _is_zero(value: pl.Expr) -> pl.Expr:
    return value == 0


def _column(name: str) -> Measure:
    return lambda facts: facts[name]


def _in_both(count: Callable[[pl.Series], pl.Series]) -> Measure:
    return lambda facts: count(facts["chosen_text"]) + count(facts["rejected_text"])


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
