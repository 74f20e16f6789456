"""What bears on a pair's label, as numbers: margin, both orders, how others vote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.noise_voters import Voters


def evidence(
    pairs: pl.DataFrame, scores: pl.DataFrame, judgments: pl.DataFrame, voters: Voters
) -> pl.DataFrame:
    """Return a row of numbers per pair, in their order: pair_id, margin and what bears on it.

    `clearness` is margin / (margin + its standard error), `order_verdict` the labelling judge's
    mean verdict on the two in both orders (1: the chosen wins both), `order_disagreement` the
    share of such double readings that differ, `vote:NAME` 1, 0 or -1 for the chosen, neither or
    the rejected, and `people` the sign of their sum. Null where there is none.

    Args:
        pairs: rows of `pairs`, all by one scorer.
        scores: rows of `scores` of their candidates.
        judgments: rows of `judgments` on their candidates; others are not looked at.
        voters: who else scored.
    """
    facts = pairs.select(
        "pair_id", "scorer", "margin", "chosen_candidate_id", "rejected_candidate_id"
    )
    facts = _joined(facts, _errors(scores), on_scorer=True)
    error = (pl.col("chosen_value") + pl.col("rejected_value")).sqrt()
    margin = pl.col("margin")
    facts = facts.with_columns(margin_standard_error=error, clearness=margin / (margin + error))
    keys = ["scorer", "chosen_candidate_id", "rejected_candidate_id"]
    facts = facts.drop("chosen_value", "rejected_value").join(
        readings(judgments), on=keys, how="left", validate="m:1", maintain_order="left"
    )
    for name in dict.fromkeys((*voters.members, *voters.others, *voters.people)):
        said = scores.filter(pl.col("scorer") == name, pl.col("score").is_finite())
        facts = _joined(facts, said.select("candidate_id", value="score"))
        vote = (pl.col("chosen_value") - pl.col("rejected_value")).sign().cast(pl.Int8)
        facts = facts.with_columns(vote.alias(f"vote:{name}"))
        facts = facts.drop("chosen_value", "rejected_value")
    people = [f"vote:{name}" for name in voters.people]
    votes = pl.concat_list(people).list.drop_nulls() if people else None
    majority = pl.lit(None) if votes is None else _majority(votes)
    facts = facts.with_columns(people=majority.cast(pl.Int8)).drop(people)
    return facts.drop("scorer", "chosen_candidate_id", "rejected_candidate_id")


def _majority(votes: pl.Expr) -> pl.Expr:
    return pl.when(votes.list.len() > 0).then(votes.list.sum().sign())


def _errors(scores: pl.DataFrame) -> pl.DataFrame:
    """Return candidate_id, scorer and value: the squared standard error of each score."""
    parsed = pl.col("judgments") * (1 - pl.col("missing_share"))
    return scores.select("candidate_id", "scorer", value=pl.col("spread") ** 2 / parsed)


def _joined(facts: pl.DataFrame, values: pl.DataFrame, *, on_scorer: bool = False) -> pl.DataFrame:
    """Return ``facts`` with `chosen_value` and `rejected_value`, null where there is none."""
    for role in ("chosen", "rejected"):
        of_role = values.rename({"candidate_id": f"{role}_candidate_id", "value": f"{role}_value"})
        keys = [f"{role}_candidate_id", *(["scorer"] if on_scorer else [])]
        facts = facts.join(of_role, on=keys, how="left", validate="m:1", maintain_order="left")
    return facts


def readings(judgments: pl.DataFrame) -> pl.DataFrame:
    """Return what came of any two candidates that a scorer read in both orders, from either side.

    Columns: scorer, chosen_candidate_id, rejected_candidate_id (either of the two is called the
    chosen in one of two rows), order_verdict, order_disagreement.
    """
    read = judgments.drop_nulls(["other_candidate_id", "order", "score"]).select(
        "scorer",
        "order",
        chosen_candidate_id="candidate_id",
        rejected_candidate_id="other_candidate_id",
        verdict=2 * pl.col("score") - 1,
        flagged=pl.col("flag").is_not_null(),
    )
    ids = {"chosen_candidate_id", "rejected_candidate_id"}
    swap = dict(zip(sorted(ids), sorted(ids, reverse=True), strict=True))
    turned = read.with_columns(verdict=-pl.col("verdict")).rename(swap).select(read.columns)
    keys = ["scorer", *sorted(ids)]
    return (
        pl.concat([read, turned])
        .group_by(keys)
        .agg(
            order_verdict=pl.col("verdict").mean(),
            order_disagreement=pl.col("flagged").mean(),
            orders=pl.col("order").n_unique(),
        )
        .filter(pl.col("orders") > 1)
        .drop("orders")
    )


def contradictions(judgments: pl.DataFrame) -> pl.DataFrame:
    """Return the `order_disagreement` of any two candidates read in both orders, a row for both."""
    one_side = pl.col("chosen_candidate_id") < pl.col("rejected_candidate_id")
    return readings(judgments).filter(one_side).select("order_disagreement")


def neighbours(scores: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return the `vote:NAME` on candidates that follow each other by id within their prompt.

    Ids are hashes: unlike the pairs, these are no selection by anybody's score.
    """
    wide = scores.select("prompt_id", "candidate_id").unique().sort("prompt_id", "candidate_id")
    for name in names:
        said = scores.filter(pl.col("scorer") == name, pl.col("score").is_finite())
        of_name = said.select("candidate_id", pl.col("score").alias(f"vote:{name}"))
        wide = wide.join(of_name, on="candidate_id", how="left", maintain_order="left")
    same_prompt = pl.col("prompt_id") == pl.col("prompt_id").shift(-1)
    votes = [
        (pl.col(f"vote:{name}") - pl.col(f"vote:{name}").shift(-1)).sign().cast(pl.Int8)
        for name in names
    ]
    return wide.select(*votes, same=same_prompt).filter("same").drop("same")


def gold_labels(planted: pl.DataFrame, said: pl.DataFrame, scorer: str) -> pl.DataFrame:
    """Return what ``scorer`` makes of the planted pairs: columns of `pairs`, and `wrong`.

    A planted pair whose two answers it scores equal, or not both, makes no label.

    Args:
        planted: candidate_id, prompt_id and sample_index: 0 is good, 1 is damaged.
        said: candidate_id and score.
        scorer: its name.
    """
    facts = planted.select("candidate_id", "prompt_id", "sample_index").join(
        said.filter(pl.col("score").is_finite()).select("candidate_id", "score"), on="candidate_id"
    )
    good, damaged = (facts.filter(sample_index=place) for place in (0, 1))
    both = good.join(damaged, on="prompt_id", suffix="_of_damaged").sort("prompt_id")
    wrong = pl.col("score") < pl.col("score_of_damaged")
    good_id, damaged_id = pl.col("candidate_id"), pl.col("candidate_id_of_damaged")
    return both.filter(pl.col("score") != pl.col("score_of_damaged")).select(
        pair_id="prompt_id",
        scorer=pl.lit(scorer),
        margin=(pl.col("score") - pl.col("score_of_damaged")).abs(),
        chosen_candidate_id=pl.when(wrong).then(damaged_id).otherwise(good_id),
        rejected_candidate_id=pl.when(wrong).then(good_id).otherwise(damaged_id),
        wrong=wrong,
    )
