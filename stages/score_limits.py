"""Limits on any scorer's scores of a pair's answers, whichever scorer paired them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

import polars as pl
import pydantic
import pydantic_core

from stages.configuration import Config
from stages.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

ROLES = ("chosen", "rejected")


class ScoreLimit(Config):
    """What one scorer's scores must keep to, such as how toxic an answer may be."""

    scorer: str
    """Name of one of `scoring.scorers`."""
    of: Literal["chosen", "rejected", "either"] = "either"
    """Whose score; `either` drops a pair of which one answer is out of bounds."""
    minimum: float | None = None
    """In the scorer's unit."""
    maximum: float | None = None
    """The same."""

    @pydantic.model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise pydantic_core.PydanticCustomError("limit", "`minimum` or `maximum` is needed")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise pydantic_core.PydanticCustomError("limit", "minimum is above maximum")
        return self

    @property
    def roles(self) -> Sequence[str]:
        """The answers whose scores are limited."""
        return ROLES if self.of == "either" else (self.of,)


def _distinct(limits: tuple[ScoreLimit, ...]) -> tuple[ScoreLimit, ...]:
    if len({(limit.scorer, limit.of) for limit in limits}) < len(limits):
        raise pydantic_core.PydanticCustomError("twice", "one scorer and `of` is limited twice")
    return limits


ScoreLimits = Annotated[tuple[ScoreLimit, ...], pydantic.AfterValidator(_distinct)]


def with_scores(
    facts: pl.DataFrame, scores: pl.DataFrame | None, limits: ScoreLimits
) -> pl.DataFrame:
    """Return ``facts`` with a column for each limited scorer and answer; null where it has none.

    Raises:
        DataError: no scores are given.
    """
    if scores is None:
        raise DataError("no scores are given", expected="those of the scorers in `score_limits`")
    measured = scores.filter(pl.col("score").is_finite())
    for scorer in {limit.scorer: None for limit in limits}:
        by_scorer = measured.filter(scorer=scorer)
        for role in ROLES:
            of_role = by_scorer.select(
                pl.col("candidate_id").alias(f"{role}_candidate_id"),
                pl.col("score").alias(column(scorer, role)),
            )
            facts = facts.join(of_role, on=f"{role}_candidate_id", how="left", validate="m:1")
    return facts


def lowest(facts: pl.DataFrame, limit: ScoreLimit) -> pl.Series:
    """Return the lowest of the limited scores of each pair; null where it has none."""
    return facts.select(value=pl.min_horizontal(_columns(limit)))["value"]


def highest(facts: pl.DataFrame, limit: ScoreLimit) -> pl.Series:
    """Return the highest of the limited scores of each pair; null where it has none."""
    return facts.select(value=pl.max_horizontal(_columns(limit)))["value"]


def _columns(limit: ScoreLimit) -> list[str]:
    return [column(limit.scorer, role) for role in limit.roles]


def column(scorer: str, role: str) -> str:
    """Return the name of the column of one scorer's scores of the chosen or the rejected."""
    return f"score:{scorer}:{role}"
