"""Filters on pairs. Each rules on every pair and says why; nothing disappears."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl
import polars.selectors as cs

from stages import score_limits
from stages.errors import DataError
from stages.filter_rulings import LENGTH_WEIGHT, ROUNDING, rulings
from stages.near_duplicates import signatures
from stages.pair_texts import of_pairs
from stages.prompt_records import prompt_texts
from stages.references import REFERENCE
from stages.tables import DECISIONS, EDITED, PAIRS

if TYPE_CHECKING:
    from stages.filter_rulings import Ruling
    from stages.filter_settings import FilteringConfig
    from stages.near_duplicates import NearDuplicateConfig

VERSION = 2

CANDIDATE_COLUMNS = ("candidate_id", "completion", "finish_reason", "weights_hash")
"""What is read of `candidates`."""

TEXT_COLUMNS = ("chosen_text", "rejected_text", "chosen_finish", "rejected_finish")


class Filtered(NamedTuple):
    """What the filters kept (`pairs` rows) and what each decided (`decisions` rows)."""

    kept: pl.DataFrame
    decisions: pl.DataFrame


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
    """Return a row of numbers per pair: those of `pairs`, and what filters measure on texts.

    Its id is there, and of the other ids those that `rule` asks for: ten million pairs are ruled on
    at once.
    Pairs can be measured in any number of calls, all pairs of a prompt in one; nothing here
    depends on other prompts. ``prompts`` and ``scores`` are asked for by ``config.prompt_columns``
    and ``config.needs_scores``, the column `probability_wrong` of ``pairs`` by ``needs_noise``.

    Raises:
        DataError: a pair's candidate is not in ``candidates``, or its prompt not in ``prompts``.
    """
    facts = _with_texts(pairs, candidates)
    if config.needs_sources:
        facts = _with_sources(facts, prompts)
    if config.near_duplicates:
        facts = _with_signatures(facts, prompts, config.near_duplicates)
    if config.needs_success:
        facts = _with_success(facts, candidates, scores, config.success_score)
    if config.score_limits:
        facts = score_limits.with_scores(facts, scores, config.score_limits)
    measured = [_measured(facts, ruling) for ruling in rulings(config) if ruling.of_texts]
    facts = facts.drop(TEXT_COLUMNS, cs.starts_with("score:"), _unread_ids(config))
    return facts.with_columns(measured)


def rule(
    facts: pl.DataFrame, config: FilteringConfig, earlier: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Return all pairs' ``facts`` with every filter's measure, whether it keeps, and `standing`.

    Every filter rules on every pair, also on those another one drops: what a changed limit would
    give can be read off. What a filter cannot measure on a pair (value null), it keeps.
    ``earlier`` are the signatures of pairs that earlier runs kept, if the configuration asks.
    """
    facts = facts.with_columns(standing=pl.lit(value=True))
    for ruling in rulings(config, earlier):
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
    for position, ruling in enumerate(rulings(config)):
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


def kept_signatures(ruled: pl.DataFrame) -> pl.DataFrame:
    """Return `pair_signatures` rows: of the pairs that every filter keeps."""
    signature = pl.col("signature").arr.to_list()
    return ruled.filter("standing").select("pair_id", signature)


def kept_pairs(pairs: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``pairs`` that no decision drops, sorted by id."""
    dropped = decisions.filter(~pl.col("kept")).select("pair_id").unique()
    kept = pairs.join(dropped, on="pair_id", how="anti").sort("pair_id")
    return kept.select(PAIRS.column_names)


def length_weights(decisions: pl.DataFrame) -> pl.DataFrame:
    """Return `pair_id` and `length_weight` of what is weighed against length bias, if anything."""
    weighed = decisions.filter(pl.col("filter") == LENGTH_WEIGHT)
    return weighed.select("pair_id", length_weight="value")


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


def _unread_ids(config: FilteringConfig) -> set[str]:
    """Return the columns of text in `pairs` that no filter on all pairs reads."""
    ids = {"prompt_id", "strategy", "scorer", "chosen_candidate_id", "rejected_candidate_id"}
    if config.minimum_normalised_margin is not None:
        ids -= {"scorer", "chosen_candidate_id", "rejected_candidate_id"}
    if config.maximum_pairs_per_prompt is not None:
        ids -= {"prompt_id"}
    return ids


def _with_texts(pairs: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs with both completions and finish reasons, joined by id."""
    facts, named = pairs, of_pairs(candidates, pairs)
    for role in ("chosen", "rejected"):
        of_role = named.select(
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


def _with_signatures(
    facts: pl.DataFrame, prompts: pl.DataFrame | None, config: NearDuplicateConfig
) -> pl.DataFrame:
    """Return ``facts`` with the MinHash signature of prompt, chosen and rejected together."""
    if prompts is None:
        raise DataError("no prompts are given", expected="their messages, to find pairs alike")
    turns = prompts.select("prompt_id", prompt_text=prompt_texts(prompts))
    texts = facts.join(turns, on="prompt_id", how="left", validate="m:1", maintain_order="left")
    joined = pl.concat_str("prompt_text", "chosen_text", "rejected_text", separator="\n")
    return facts.with_columns(signatures(texts.select(joined).to_series(), config))


def _with_success(
    facts: pl.DataFrame,
    candidates: pl.DataFrame,
    scores: pl.DataFrame | None,
    success_score: float,
) -> pl.DataFrame:
    """Return ``facts`` with `prompt_success`: of the prompt's scored samples, who succeed.

    Reference and edited answers are no samples: they say nothing of how hard a prompt is.
    """
    if scores is None:
        raise DataError("no scores are given", expected="every candidate's, to see who succeeds")
    given = candidates.filter(pl.col("weights_hash").is_in([REFERENCE, EDITED]))
    scored = scores.filter(pl.col("score").is_finite())
    scored = scored.join(given, on="candidate_id", how="anti")
    succeeds = pl.col("score") + ROUNDING >= success_score
    of_prompt = scored.group_by("prompt_id", "scorer").agg(prompt_success=succeeds.sum() / pl.len())
    return facts.join(of_prompt, on=["prompt_id", "scorer"], how="left", validate="m:1")


def _measured(facts: pl.DataFrame, ruling: Ruling) -> pl.Series:
    return ruling.measure(facts).cast(pl.Float64).alias(f"value:{ruling.filter}")
