"""Verdicts on candidates, as the `judgments` table, and their aggregate, the `scores` table."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

import polars as pl
import pydantic

from stages.configuration import NOT_EMPTY, Config
from stages.content_ids import content_ids
from stages.errors import DataError, nearest
from stages.tables import JUDGMENTS, SCORES
from stages.task_families import FAMILIES, explain, score

VERSION = 1

RULES_VERSION = "task-families-1"
"""Raised when a verifier changes: stored judgments are then made again."""


class RulesScorer(Config):
    """Each prompt's own verifier, with partial credit in [0, 1]; 1 is a success."""

    kind: Literal["rules"] = "rules"
    name: str = "rules"
    """The scorer's name in the tables."""


class ScoringConfig(Config):
    """Who scores the candidates."""

    scorers: Annotated[tuple[RulesScorer, ...], NOT_EMPTY] = (RulesScorer(),)
    """Every scorer judges every candidate."""

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"two scorers have the same name: {', '.join(names)}")
        return self


def judge_by_rules(
    candidates: pl.DataFrame, prompts: pl.DataFrame, scorer: RulesScorer
) -> pl.DataFrame:
    """Return one judgment per candidate, from its prompt's verifier.

    A candidate whose prompt names no verifier has a missing score, never a low one.

    Raises:
        DataError: a prompt names a verifier that isn't known, or its ground truth is not what
            the verifier needs (names the prompt).
    """
    facts = prompts.select("prompt_id", "verifier", "ground_truth")
    joined = candidates.select("candidate_id", "prompt_id", "completion").join(
        facts, on="prompt_id", how="left", maintain_order="left"
    )
    unknown = set(joined["verifier"].drop_nulls().unique()) - set(FAMILIES)
    if unknown:
        name = min(unknown)
        raise DataError(
            f"unknown verifier {name!r}{nearest(name, list(FAMILIES))}",
            expected=f"one of {', '.join(FAMILIES)}",
            where="the prompts' `verifier` column",
        )
    verdicts = [_verdict(*row) for row in joined.drop("candidate_id").iter_rows()]
    frame = joined.select("candidate_id").with_columns(
        pl.Series("score", [value for value, _ in verdicts], dtype=pl.Float64),
        pl.Series("raw", [raw for _, raw in verdicts], dtype=pl.String),
        scorer=pl.lit(scorer.name),
        scorer_version=pl.lit(RULES_VERSION),
    )
    return _as_judgments(frame)


def _verdict(
    prompt_id: str, text: str, verifier: str | None, truth: str | None
) -> tuple[float | None, str]:
    """Return the score and what the verifier said."""
    if verifier is None or truth is None:
        return None, "no verifier for this prompt"
    try:
        facts = json.loads(truth)
        return score(verifier, facts, text), explain(verifier, facts, text)
    # A verifier raises on no completion, so whatever it raises is about the ground truth.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"the ground truth {truth[:80]!r} is not what verifier {verifier!r} needs: {error!r}",
            expected="a JSON object with the facts that the verifier checks",
            where=f"the prompts' `ground_truth` column, {prompt_id}",
        ) from None


def _as_judgments(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with the ids and the columns that its scorer doesn't fill, as nulls."""
    schema = JUDGMENTS.empty().schema
    absent = [n for n in JUDGMENTS.column_names if n not in (*frame.columns, "judgment_id")]
    filled = frame.with_columns(pl.lit(None, dtype=schema[name]).alias(name) for name in absent)
    identity = ["candidate_id", "other_candidate_id", "order", "scorer", "scorer_version", "raw"]
    ids = content_ids(filled, "judgment", identity)
    return filled.with_columns(ids).select(JUDGMENTS.column_names)


def aggregate(judgments: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the `scores` table: per candidate and scorer the mean, spread and missing share."""
    prompt_of = candidates.select("candidate_id", "prompt_id")
    # Sorted: a sum of floats depends on their order.
    grouped = (
        judgments.sort("judgment_id")
        .group_by("candidate_id", "scorer")
        .agg(
            pl.col("score").mean(),
            spread=pl.col("score").std(),
            judgments=pl.len().cast(pl.Int64),
            missing_share=pl.col("score").is_null().mean(),
        )
    )
    scored = grouped.join(prompt_of, on="candidate_id", how="inner")
    return scored.sort("candidate_id", "scorer").select(SCORES.column_names)
