"""Answers labelled desirable or undesirable one by one, as KTO takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import polars as pl
import pydantic
import pydantic_core

from stages.configuration import Config
from stages.errors import DataError

if TYPE_CHECKING:
    from typing import Final

SIDES: Final = ("chosen", "rejected")

COLUMNS = ("prompt", "completion", "label", "pair_id", "candidate_id")


class UnpairedConfig(Config):
    """Label answers by their own score, not by their pair: docs/exports.md."""

    desirable_minimum_score: float
    """An answer with this score or more is desirable, in the unit of the pairs' scorer."""
    undesirable_maximum_score: float
    """An answer with this score or less is undesirable; those between are left out."""

    @pydantic.model_validator(mode="after")
    def _no_answer_is_both(self) -> Self:
        if self.undesirable_maximum_score >= self.desirable_minimum_score:
            raise pydantic_core.PydanticCustomError(
                "band", "undesirable_maximum_score must be below desirable_minimum_score"
            )
        return self


def has_text(text: pl.Expr) -> pl.Expr:
    """Whether a text is more than white space; null of a null."""
    return text.str.strip_chars() != ""


def unpaired_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Return TRL's unpaired preference rows: chosen answers are true, rejected ones false.

    ``rows`` are a shard's, from `export.preference_rows`. Columns: `prompt`, `completion` (a list
    of one message), `label`, `pair_id`, `candidate_id`. A candidate of several pairs is there once
    with each of its labels, at its first pair.
    """
    sides = [
        rows.select(
            "prompt",
            pl.col(side).alias("completion"),
            pl.lit(side == "chosen").alias("label"),
            "pair_id",
            pl.col(f"{side}_candidate_id").alias("candidate_id"),
        )
        for side in SIDES
    ]
    answers = pl.concat(sides).sort("pair_id", "label", descending=[False, True])
    return answers.unique(["candidate_id", "label"], keep="first", maintain_order=True)


def scored_rows(
    rows: pl.DataFrame, candidates: pl.DataFrame, scores: pl.DataFrame, config: UnpairedConfig
) -> pl.DataFrame:
    """Return the same columns for every finished answer to the prompts of ``rows``, by its score.

    The score is that of the pair's scorer. `pair_id` is the candidate's first pair, null if it is
    in none. Sorted by prompt and candidate id. ``candidates`` and ``scores`` are the shard's.

    Raises:
        DataError: the pairs' scorer scored no candidate of theirs.
    """
    asked = rows.unique("prompt_id", keep="first", maintain_order=True)
    asked = asked.select("prompt_id", "prompt", "scorer")
    finished = (pl.col("finish_reason") == "stop") & has_text(pl.col("completion"))
    turn = pl.struct(role=pl.lit("assistant"), content=pl.col("completion"))
    answered = candidates.filter(finished).select("candidate_id", completion=pl.concat_list(turn))
    scored = asked.join(scores.drop_nulls("score"), on=["prompt_id", "scorer"])
    if asked.height and scored.is_empty():
        raise DataError(
            f"no candidate is scored by {asked['scorer'][0]!r}, by whom the pairs are made",
            expected="export.unpaired with pairs of one scorer",
            remedy="take unpaired out of export, or pair by a scorer of its own scores",
        )
    pairs = unpaired_rows(rows).unique("candidate_id", keep="first", maintain_order=True)
    answers = scored.join(answered, on="candidate_id", validate="1:1").join(
        pairs.select("candidate_id", "pair_id"), on="candidate_id", how="left"
    )
    desirable = pl.col("score") >= config.desirable_minimum_score
    labelled = answers.with_columns(label=desirable).filter(
        desirable | (pl.col("score") <= config.undesirable_maximum_score)
    )
    return labelled.sort("prompt_id", "candidate_id").select(COLUMNS)


def unpaired_lines(rows: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Return `pair_id` and `line`, from 1 within ``answers``, of the pairs whose chosen is there.

    A pair is at its chosen answer's line, which other pairs may share.
    """
    numbered = answers.with_columns(line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    chosen = numbered.filter("label").select("line", chosen_candidate_id="candidate_id")
    lines = rows.join(chosen, on="chosen_candidate_id", validate="m:1", maintain_order="left")
    return lines.select("pair_id", "line")
