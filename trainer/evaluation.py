"""A policy before and after a round, compared on the same held-out prompts."""

from __future__ import annotations

from typing import Any

import polars as pl

from stages.errors import DataError
from stages.tables import EVALUATIONS, SCORES
from trainer import win_rate
from trainer.bootstrap import paired_interval

METRIC_COLUMNS = ("prompt_id", "stratum", "decoding", "metric", "value")

SUCCESS_SCORE = 1.0
"""A verifier's score of an answer that meets the whole task."""

EVERY_STRATUM = "all"
"""The stratum name of the rows over all prompts."""

WIN_RATE = "win_rate"
LENGTH_CONTROLLED = "length_controlled_win_rate"
KL = "kl_nats"
FLIPS = "judge_flip_rate"
UNJUDGED = "judge_missing_rate"
TEXT_LOSS = "text_nats_per_token"

METRICS = (
    *("success", "score", "completion_tokens", "truncated", "distinct_answers", "distinct_bigrams"),
    *(WIN_RATE, LENGTH_CONTROLLED, KL, FLIPS, UNJUDGED, TEXT_LOSS),
)
"""All that is measured, where there is something to measure it by."""

READ = "read"
"""The decoding of texts that were given, not answered."""

EVEN = 0.5
"""A policy's win rate against itself: what win rates have `before` a round."""

AT_TIMES_MISSING = ("score", "distinct_bigrams")
"""Metrics that a prompt without a score, or without a word, has none of."""

EXAMPLES = 5


def evaluations(
    before: pl.DataFrame,
    after: pl.DataFrame,
    log_ratios: pl.DataFrame,
    seed: int,
    resamples: int = 2000,
    verdicts: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return the EVALUATIONS rows without round_id of two policies' samples: docs/evaluation.md.

    The metrics are those of `per_prompt_metrics`, the win rates of `win_rate`, and `kl_nats`; with
    ``verdicts`` how often their judge changed its mind with the order, or said nothing.

    Args:
        before: the former policy's samples, as `scored_samples` returns them.
        after: the same prompts, answered by the trained policy.
        log_ratios: candidate_id, score: log pi_after(y|x) - log pi_before(y|x) of answers that
            the trained policy sampled, in nats; their mean is the KL divergence. May be empty.
        seed: of the resampling.
        resamples: bootstrap draws.
        verdicts: judgments of a judge that was shown answers of both; None: scores tell who wins.

    Raises:
        DataError: the two sides do not hold the same prompts.
    """
    judged = None if verdicts is None else win_rate.judged_duels(before, after, verdicts)
    met = win_rate.duels(before, after) if judged is None else judged.drop_nulls("win")
    wins = _of_prompts(met.rename({"win": "value"}), WIN_RATE)
    ratios = after.join(
        log_ratios.select("candidate_id", value="score").drop_nulls(), on="candidate_id"
    )
    from_nothing = [_of_prompts(ratios, KL), *([] if judged is None else _doubts(judged))]
    rates = pl.concat(from_nothing)
    even = wins.with_columns(value=pl.lit(EVEN))
    none = rates.with_columns(value=pl.lit(0.0))
    earlier, later = _on_both_sides(per_prompt_metrics(before), per_prompt_metrics(after))
    compared = compare(
        pl.concat([earlier, even, none]), pl.concat([later, wins, rates]), seed, resamples
    )
    return pl.concat([compared, _length_controlled(met, seed, resamples)])


def _doubts(judged: pl.DataFrame) -> list[pl.DataFrame]:
    """Return how often the judge of `win_rate.judged_duels` did not know who is better."""
    flipped = judged.select(pl.exclude("win"), value="flipped").drop_nulls("value")
    unjudged = judged.with_columns(value=pl.col("win").is_null().cast(pl.Float64))
    return [_of_prompts(flipped, FLIPS), _of_prompts(unjudged, UNJUDGED)]


def _of_prompts(samples: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Return one row a prompt and decoding: the mean ``value`` of its samples, as ``metric``."""
    means = samples.group_by("prompt_id", "stratum", "decoding").agg(pl.col("value").mean())
    return means.with_columns(metric=pl.lit(metric)).select(METRIC_COLUMNS)


def _on_both_sides(before: pl.DataFrame, after: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both without the values of `AT_TIMES_MISSING` that only one side has."""
    on = ["prompt_id", "decoding", "metric"]
    whole = ~pl.col("metric").is_in(AT_TIMES_MISSING)
    return (
        pl.concat([before.filter(whole), before.filter(~whole).join(after, on=on, how="semi")]),
        pl.concat([after.filter(whole), after.filter(~whole).join(before, on=on, how="semi")]),
    )


def _length_controlled(met: pl.DataFrame, seed: int, resamples: int) -> pl.DataFrame:
    """Return the rows of the win rate at equal lengths, per decoding and stratum."""
    strata = pl.concat([met.with_columns(stratum=pl.lit(EVERY_STRATUM)), met])
    rows = []
    for (decoding, stratum), group in strata.partition_by(
        "decoding", "stratum", as_dict=True, maintain_order=True
    ).items():
        rate, (low, high) = win_rate.length_controlled(group, seed, resamples)
        rows.append(
            {
                "metric": LENGTH_CONTROLLED,
                "decoding": decoding,
                "stratum": stratum,
                "prompts": group["prompt_id"].n_unique(),
                "before": EVEN,
                "after": rate,
                "difference": rate - EVEN,
                "low": low - EVEN,
                "high": high - EVEN,
            }
        )
    return as_evaluations(rows)


def text_losses(losses: pl.Series) -> pl.DataFrame:
    """Return what `compare` takes of the losses per token of texts, in their order."""
    ids = pl.Series("prompt_id", [f"text_{number}" for number in range(len(losses))], pl.String)
    frame = ids.to_frame().with_columns(
        stratum=pl.lit("texts"), decoding=pl.lit(READ), metric=pl.lit(TEXT_LOSS), value=losses
    )
    return frame.select(METRIC_COLUMNS)


def as_evaluations(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return ``rows`` as a frame of EVALUATIONS without round_id."""
    schema = {name: kind for name, kind in EVALUATIONS.empty().schema.items() if name != "round_id"}
    return pl.DataFrame(rows, schema=schema)


def compare(
    before: pl.DataFrame, after: pl.DataFrame, seed: int, resamples: int = 2000
) -> pl.DataFrame:
    """Return the EVALUATIONS rows without round_id: per metric, decoding and stratum incl. `all`.

    `low` and `high` are the ends of the paired 95 % percentile bootstrap interval of the mean
    difference over prompts (Efron and Tibshirani 1993, ch. 13): prompts are drawn with
    replacement, each with both of its values, so that the prompts' own difficulty cancels.

    Args:
        before: prompt_id, stratum, decoding, metric, value (mean over the prompt's samples).
        after: the same prompts, answered by the trained policy.
        seed: of the resampling; equal inputs and seed give equal intervals.
        resamples: bootstrap draws.

    Raises:
        DataError: the two frames do not hold the same prompts per metric and decoding, or a value
            is null or not a number.
    """
    paired = _paired(before, after)
    strata = pl.concat([paired.with_columns(stratum=pl.lit(EVERY_STRATUM)), paired])
    keys = ["metric", "decoding", "stratum"]
    rows = [
        dict(zip(keys, key, strict=True)) | _measured(group, seed, resamples)
        for key, group in sorted(strata.partition_by(keys, as_dict=True).items(), key=_all_first)
    ]
    return as_evaluations(rows)


def scored_samples(
    candidates: pl.DataFrame, scores: pl.DataFrame | None, prompts: pl.DataFrame
) -> pl.DataFrame:
    """Return one row per candidate, with its prompt's stratum and verifier and its score.

    Decoding is `greedy` at temperature 0, else `sampled`. ``scores`` are None of a judge that only
    compares answers: then no answer has a score, and no verifier that could be met.

    Raises:
        DataError: `scores` holds several rows for a candidate (several scorers), or a candidate's
            prompt is not in `prompts`.
    """
    if scores is None:
        scores, prompts = SCORES.empty(), prompts.with_columns(verifier=pl.lit(None, pl.String))
    _require_one_score(scores)
    greedy = pl.col("temperature") == 0
    joined = (
        candidates.with_columns(
            decoding=pl.when(greedy).then(pl.lit("greedy")).otherwise(pl.lit("sampled"))
        )
        .join(scores.select("candidate_id", "score"), on="candidate_id", how="left")
        .join(
            prompts.select("prompt_id", "stratum", "verifier"),
            on="prompt_id",
            how="left",
            validate="m:1",
        )
    )
    _require_known_prompts(joined)
    return joined


def per_prompt_metrics(samples: pl.DataFrame) -> pl.DataFrame:
    """Return prompt_id, stratum, decoding, metric, value of `scored_samples`.

    Means over each prompt's samples: `success` (share with a score of at least 1.0; prompts with a
    verifier only), `score` (samples without one are left out), `completion_tokens` and `truncated`
    (share cut at the token limit). A sample whose score is null did not succeed.

    Diversity, of prompts with at least two samples: `distinct_answers` (different texts per
    sample) and `distinct_bigrams` (Li et al. 2016, arXiv 1510.03055: different word bigrams per
    bigram, over all of a prompt's samples; the end of a text counts as a word).
    """
    succeeded = (pl.col("score") >= SUCCESS_SCORE).fill_null(value=False)
    several = pl.len() > 1
    words = pl.col("completion").str.to_lowercase().str.extract_all(r"\w+|[^\w\s]")
    following = pl.element().shift(-1, fill_value="")
    bigrams = pl.col("bigrams").explode().drop_nulls()
    means = (
        samples.with_columns(bigrams=words.list.eval((pl.element() + " " + following).hash()))
        .group_by("prompt_id", "stratum", "decoding")
        .agg(
            success=pl.when(pl.col("verifier").is_not_null().first()).then(succeeded.mean()),
            score=pl.col("score").mean(),
            completion_tokens=pl.col("completion_tokens").mean(),
            truncated=(pl.col("finish_reason") == "length").mean(),
            distinct_answers=pl.when(several).then(pl.col("completion").n_unique() / pl.len()),
            distinct_bigrams=pl.when(several & (bigrams.len() > 0)).then(
                bigrams.n_unique() / bigrams.len()
            ),
        )
    )
    index = ["prompt_id", "stratum", "decoding"]
    long = means.unpivot(index=index, variable_name="metric")
    return long.drop_nulls("value").select(METRIC_COLUMNS).sort("metric", "decoding", "prompt_id")


def _require_one_score(scores: pl.DataFrame) -> None:
    several = scores.filter(pl.col("candidate_id").is_duplicated())
    if not several.is_empty():
        raise DataError(
            f"{several['candidate_id'].n_unique()} candidates have several scores",
            expected="the scores of one scorer",
            where=f"scorers {several['scorer'].unique().sort().to_list()}",
            remedy="keep one scorer's rows",
        )


def _require_known_prompts(joined: pl.DataFrame) -> None:
    unknown = joined.filter(pl.col("stratum").is_null())
    if not unknown.is_empty():
        ids = unknown["prompt_id"].unique().sort()
        raise DataError(
            f"{ids.len()} prompts of candidates are not in the prompts table",
            where=f"such as {', '.join(ids.head(EXAMPLES))}",
        )


def _paired(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return metric, decoding, stratum, prompt_id, value, value_after; sorted, joined by id."""
    on = ["metric", "decoding", "stratum", "prompt_id"]
    for name, frame in (("before", before), ("after", after)):
        if frame.select(pl.struct(on).is_duplicated().any()).item():
            raise DataError(f"{name} holds several values for one prompt", expected="one mean each")
        if not frame["value"].is_finite().fill_null(value=False).all():
            raise DataError(f"{name} holds values that are null or not finite")
        if (frame["stratum"] == EVERY_STRATUM).any():
            raise DataError(
                f"{name} holds a stratum {EVERY_STRATUM!r}", expected="a name that is not taken"
            )
    joined = before.select(*on, "value").join(
        after.select(*on, value_after="value"), on=on, how="full", coalesce=True, validate="1:1"
    )
    gone = joined.filter(pl.col("value_after").is_null())
    new = joined.filter(pl.col("value").is_null())
    if not (gone.is_empty() and new.is_empty()):
        raise DataError(
            f"{gone.height} values are only in before ({_examples(gone)}), "
            f"{new.height} only in after ({_examples(new)})",
            expected="the same prompts, metrics, decodings and strata in both",
            remedy="evaluate both policies on the same held-out prompts",
        )
    return joined.sort(on)


def _examples(rows: pl.DataFrame) -> str:
    labels = rows.select(pl.format("{}/{}/{}", "prompt_id", "metric", "decoding")).to_series()
    return ", ".join(labels.sort().head(EXAMPLES)) or "none"


def _all_first(item: tuple[tuple[Any, ...], pl.DataFrame]) -> tuple[str, str, bool, str]:
    metric, decoding, stratum = item[0]
    return metric, decoding, stratum != EVERY_STRATUM, stratum


def _measured(group: pl.DataFrame, seed: int, resamples: int) -> dict[str, float]:
    values, values_after = group["value"].to_numpy(), group["value_after"].to_numpy()
    low, high = paired_interval(values_after - values, seed, resamples)
    before, after = float(values.mean()), float(values_after.mean())
    return {
        "prompts": group.height,
        "before": before,
        "after": after,
        "difference": after - before,
        "low": low,
        "high": high,
    }
