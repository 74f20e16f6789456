"""Why pairing made no pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import polars as pl

from stages.errors import DataError, nearest
from stages.pairing import taking_part

if TYPE_CHECKING:
    from stages.pairing import PairingConfig


def explain_no_pairs(
    candidates: pl.DataFrame,
    scores: pl.DataFrame,
    config: PairingConfig,
    judgments: pl.DataFrame | None = None,
) -> NoReturn:
    """Say why ``pair`` made no pair at all of the same arguments.

    Raises:
        DataError: always: a scorer judged nothing, scored nothing, or compared no two candidates;
            else with the counts of prompts without a reference, unscored and tied ones, and of
            those whose pairs were refused.
    """
    _require_judged(scores, config)
    _require_scored(scores, config)
    _require_compared(judgments, config)
    has_reference = pl.col("reference").any() if config.needs_references else pl.lit(value=True)
    finite = pl.col("score").filter(pl.col("score").is_finite(), ~pl.col("edited"))
    part = taking_part(candidates, scores, config, judgments)
    per_prompt = part.group_by("prompt_id").agg(
        scored=finite.len(), distinct=finite.n_unique(), may=has_reference
    )
    without = per_prompt.filter(~pl.col("may")).height
    asked = per_prompt.filter("may")
    few = asked.filter(pl.col("scored") < 2).height  # noqa: PLR2004
    tied = asked.filter(pl.col("scored") >= 2, pl.col("distinct") == 1).height  # noqa: PLR2004
    raise _no_pairs(config, per_prompt.height, without, few, tied)


def _require_judged(scores: pl.DataFrame, config: PairingConfig) -> None:
    known = scores["scorer"].unique().to_list()
    key = "weights" if config.weights else "scorer"
    asked = [(key, name) for name in config.deciding_scorers]
    asked += [("agreeing_scorers", name) for name in config.agreeing_scorers]
    for of_key, name in asked:
        if known and name not in known:
            raise DataError(
                f"no scores by {name!r}{nearest(name, known)}",
                expected=f"a scorer that judged: {', '.join(sorted(known))}",
                where=f"pairing.{of_key}",
            )


def _require_scored(scores: pl.DataFrame, config: PairingConfig) -> None:
    for name in (*config.deciding_scorers, *config.agreeing_scorers):
        own = scores.filter(scorer=name)["score"]
        if own.len() and not own.is_finite().any():
            raise DataError(
                f"no pairs: {name!r} gave none of {own.len()} candidates a score",
                expected="two candidates with different scores for at least one prompt",
                where="stage pair",
                remedy='see why by `prefmill sql "SELECT scorer, error, any_value(raw), count(*) '
                'FROM judgments GROUP BY ALL"`',
            )


def _require_compared(judgments: pl.DataFrame | None, config: PairingConfig) -> None:
    if judgments is None:
        return
    said = judgments.filter(scorer=config.scorer)
    if said.height and said["other_candidate_id"].null_count() == said.height:
        raise DataError(
            f"{config.scorer!r} judged {said.height} candidates one by one and compared none",
            expected="a scorer with verdicts on two candidates: a judge with a pairwise rubric, or "
            "votes with `other_candidate_id`",
            where="pairing.scorer",
            remedy="name such a scorer, or pair by a strategy that reads scores",
        )


def _no_pairs(config: PairingConfig, prompts: int, without: int, few: int, tied: int) -> DataError:
    """Return the error with the counts of prompts: all, without a reference, few scored, tied."""
    found = (
        f"no pairs: of {prompts} prompts {tied} have only tied candidates and "
        f"{few} fewer than two scored ones"
    )
    remedy = "sample more candidates per prompt, at a higher temperature, or use a finer scorer"
    if without:
        found += f"; {without} have no reference answer"
        remedy = f"name the sources' `reference_column`; {remedy}"
    refused = prompts - without - few - tied
    if refused:
        limits = [f"`minimum_margin` {config.minimum_margin:g}"] if config.minimum_margin else []
        limits += [f"the agreement of {name}" for name in config.agreeing_scorers]
        limits += ["a reference scored above a sampled answer"] if config.needs_references else []
        found += f"; {refused} have pairs, none with {' and '.join(limits)}"
        remedy = f"lower `minimum_margin` or ask fewer `agreeing_scorers` to agree; {remedy}"
    return DataError(
        found,
        expected="two candidates with different scores for at least one prompt",
        where="stage pair",
        remedy=remedy,
    )
