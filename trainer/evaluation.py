"""A policy before and after a round, compared on the same held-out prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stages.errors import DataError
from stages.tables import EVALUATIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRIC_COLUMNS = ("prompt_id", "stratum", "decoding", "metric", "value")

SUCCESS_SCORE = 1.0
"""A verifier's score of an answer that meets the whole task."""

INTERVAL_PERCENT = (2.5, 97.5)

RESAMPLED_AT_ONCE = 4_000_000
"""Index entries drawn at a time: 32 MB, however many prompts there are."""

EVERY_STRATUM = "all"
"""The stratum name of the rows over all prompts."""

EXAMPLES = 5


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
    schema = {name: kind for name, kind in EVALUATIONS.empty().schema.items() if name != "round_id"}
    return pl.DataFrame(rows, schema=schema)


def per_prompt_metrics(
    candidates: pl.DataFrame, scores: pl.DataFrame, prompts: pl.DataFrame
) -> pl.DataFrame:
    """Return prompt_id, stratum, decoding, metric, value: means over each prompt's samples.

    Metrics: `success` (share of samples with a score of at least 1.0; prompts with a verifier
    only), `score` (mean; samples without a score are left out) and `completion_tokens`. Decoding
    is `greedy` at temperature 0, else `sampled`. A sample whose score is null did not succeed.

    Raises:
        DataError: `scores` holds several rows for a candidate (several scorers), or a candidate's
            prompt is not in `prompts`.
    """
    _require_one_score(scores)
    sampled = candidates.select("candidate_id", "prompt_id", "temperature", "completion_tokens")
    joined = sampled.join(
        scores.select("candidate_id", "score"), on="candidate_id", how="left"
    ).join(
        prompts.select("prompt_id", "stratum", "verifier"),
        on="prompt_id",
        how="left",
        validate="m:1",
    )
    _require_known_prompts(joined)
    greedy = pl.col("temperature") == 0
    succeeded = (pl.col("score") >= SUCCESS_SCORE).fill_null(value=False)
    means = joined.group_by(
        "prompt_id",
        "stratum",
        pl.when(greedy).then(pl.lit("greedy")).otherwise(pl.lit("sampled")).alias("decoding"),
    ).agg(
        success=pl.when(pl.col("verifier").is_not_null().first()).then(succeeded.mean()),
        score=pl.col("score").mean(),
        completion_tokens=pl.col("completion_tokens").mean(),
    )
    metrics = ["success", "score", "completion_tokens"]
    long = means.unpivot(
        metrics, index=["prompt_id", "stratum", "decoding"], variable_name="metric"
    )
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


def paired_interval(
    differences: NDArray[np.float64], seed: int, resamples: int
) -> tuple[float, float]:
    """Return the ends of the 95 % percentile bootstrap interval of the mean of ``differences``.

    Equal numbers of prompts are resampled alike under one seed, so intervals of two metrics over
    the same prompts are comparable.
    """
    count = len(differences)
    generator = np.random.default_rng(seed)
    at_once = max(1, RESAMPLED_AT_ONCE // count)
    means = [
        differences[generator.integers(0, count, (min(at_once, resamples - done), count))].mean(1)
        for done in range(0, resamples, at_once)
    ]
    low, high = np.percentile(np.concatenate(means), INTERVAL_PERCENT)
    return float(low), float(high)
