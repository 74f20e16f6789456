"""The report's tables: what the frames say, in rows and words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from flows.report_numbers import NARROW_SPACE, count, number, percent, seconds
from stages.tables import GOLD_SPLIT

if TYPE_CHECKING:
    from flows.report_facts import ReportData

COMPARED_WITH = {"candidates scored": "candidates"}
"""Steps whose share is not one of the step before."""
MEASURES = (
    ("gold_accuracy", "Gold right", "share"),
    ("missing_rate", "Missing", "share"),
    ("tie_rate", "Ties", "share"),
    ("flip_rate", "Orders disagree", "share"),
    ("longer_wins_rate", "Longer wins", "share"),
    ("self_preference", "Self-preference", "number"),
    ("cost", "Cost", "number"),
)
"""What the report shows of a scorer's health: measure, heading, and how it is written."""
ASKED = ("calls", "tokens_read", "tokens_written", "cost")
A_THOUSAND = 1000


def funnels(funnel: pl.DataFrame) -> list[dict[str, Any]]:
    """Return one funnel per split, train first: its steps with bar widths, shares and drops."""
    if funnel.is_empty():
        return []
    found = []
    # Planted gold prompts have their own table: no pair is made of them.
    exported = funnel.filter(pl.col("split") != GOLD_SPLIT)
    by_split = exported.sort("split", "position", descending=[True, False])
    for (split,), rows in by_split.group_by(["split"], maintain_order=True):
        largest = max(int(rows["rows"].max() or 0), 1)  # type: ignore[arg-type]
        counts = dict(zip(rows["step"].to_list(), rows["rows"].to_list(), strict=True))
        steps: list[dict[str, Any]] = []
        before = ""
        for name, rows_left in counts.items():
            reason = name.removeprefix("dropped: ") if name.startswith("dropped: ") else ""
            compared = "pairs" if reason or name == "kept" else COMPARED_WITH.get(name, before)
            steps.append({
                "name": reason or name, "dropped": bool(reason), "rows": rows_left,
                "width": 100 * rows_left / largest,
                "note": _compared(rows_left, compared, counts.get(compared, 0)),
            })  # fmt: skip
            before = before if reason else name
        found.append({"split": split, "steps": steps})
    return found


def _compared(rows: int, step: str, of_step: int) -> str:
    """Return how a count compares with an earlier step's, in words."""
    if not of_step or rows == of_step:
        return ""
    if rows > of_step:
        return f"{rows / of_step:.3g} per {step.removesuffix('s')}"
    return f"{percent(rows / of_step)} of {step}"


def filters(filter_funnel: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return each split's filters in order; without any where none drops a pair."""
    if filter_funnel.is_empty():
        return {}
    dropping = filter_funnel.filter(pl.col("rulings").sum().over("split") > 0)
    by_split = dropping.sort("position").partition_by("split", as_dict=True)
    return {str(split): rows.to_dicts() for (split,), rows in by_split.items()}


def pair_facts(pairs: pl.DataFrame) -> dict[str, Any]:
    """Return the numbers that the captions of the pair plots say."""
    if pairs.is_empty():
        return {"pairs": 0, "kept": 0}
    kept, dropped = pairs.filter("kept"), pairs.filter(~pl.col("kept"))
    gap = kept["chosen_tokens"].cast(pl.Int64) - kept["rejected_tokens"].cast(pl.Int64)
    return {
        "pairs": pairs.height,
        "kept": kept.height,
        "margin": kept["margin"].median(),
        "dropped_margin": dropped["margin"].median(),
        "gap": gap.mean(),
        "longer": (gap.filter(gap != 0) > 0).mean(),
    }


def scorers(health: pl.DataFrame) -> list[dict[str, Any]]:
    """Return a row per scorer: its name, and by measure a text and whether it broke its limit."""
    if health.is_empty():
        return []
    rows = []
    for (name,), of_scorer in health.partition_by("scorer", as_dict=True).items():
        measured = {row["measure"]: row for row in of_scorer.iter_rows(named=True)}
        cells = [_measured(measured.get(measure), kind) for measure, _, kind in MEASURES]
        rows.append({"name": name, "cells": cells})
    return sorted(rows, key=lambda row: row["name"])


def _measured(row: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    if row is None or row["value"] is None:
        return {"text": "\u2013", "broken": False}
    text = percent(row["value"]) if kind == "share" else number(row["value"])
    return {"text": text, "broken": row["passed"] is False}


def agreements(health: pl.DataFrame) -> list[dict[str, Any]]:
    """Return a row per two scorers: both names, Krippendorff's alpha and Cohen's kappa."""
    if health.is_empty():
        return []
    parts = pl.col("measure").str.splitn(":", 2).struct
    named = health.with_columns(kind=parts.field("field_0"), other=parts.field("field_1"))
    kinds = ["agreement_alpha", "agreement_kappa"]
    found = named.filter(pl.col("kind").is_in(kinds)).select("scorer", "other", "kind", "value")
    return found.pivot("kind", index=["scorer", "other"]).sort("scorer", "other").to_dicts()


def with_labels(judged_margins: pl.DataFrame) -> dict[str, str]:
    """Return by scorer how often it sees the pairs as they are labelled, in words."""
    if judged_margins.is_empty():
        return {}
    margin = pl.col("margin")
    counts = judged_margins.drop_nulls("margin").group_by("scorer")
    rows = counts.agg((margin > 0).mean().alias("likes"), (margin < 0).mean().alias("opposes"))
    return {
        row["scorer"]: f"The chosen one scores higher in {percent(row['likes'])} of pairs, lower "
        f"in {percent(row['opposes'])}."
        for row in rows.iter_rows(named=True)
    }


def noise(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return a sentence or two per scorer whose labels were asked about."""
    found = []
    for row in rows.iter_rows(named=True):
        if row["rate"] is None:
            found.append({"headline": "It could not be estimated.", "note": row["note"]})
            continue
        kept = "" if row["rate_kept"] is None else f"; of the kept ones {percent(row['rate_kept'])}"
        interval = f"95{NARROW_SPACE}% interval {percent(row['low'])} to {percent(row['high'])}"
        headline = f"{percent(row['rate'])} of the proposed labels are wrong ({interval}){kept}."
        method = f"Method: {row['method']}, with {count(row['calibration_pairs'])} pairs whose "
        found.append({"headline": headline, "note": f"{method}answer is known. {row['note']}"})
    return found


def drifted(drift: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the statistics that have limits or compare with an earlier run, broken ones first."""
    if drift.is_empty():
        return []
    told = pl.col("passed").is_not_null() | pl.col("statistic").is_in(["psi", "ks"])
    rows = drift.filter(told, pl.col("value").is_not_null())
    return rows.sort("passed", "measure", "statistic", nulls_last=True).to_dicts()


def stages(stage_runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the stages in order, with the width of each one's bar of time."""
    if stage_runs.is_empty():
        return []
    longest = max(float(stage_runs["seconds"].max() or 0), 1e-9)  # type: ignore[arg-type]
    asked = [pl.lit(None).alias(name) for name in ASKED if name not in stage_runs.columns]
    rows = stage_runs.with_columns(asked).sort("position").to_dicts()
    return [{**row, "width": 100 * row["seconds"] / longest} for row in rows]


def costs(data: ReportData) -> list[tuple[str, str]]:
    """Return (name, value) of what the run took in all, and per thousand pairs kept."""
    rows, kept = data.stage_runs, pair_facts(data.pairs)["kept"]
    if rows.is_empty():
        return []
    made = rows.filter(status="made")
    found = [("Time in stages made by this run", seconds(float(made["seconds"].sum())))]
    for name, words in (
        ("tokens_read", "Tokens read by models"),
        ("tokens_written", "Tokens written by models"),
        ("cost", "Cost at the configured prices"),
    ):
        total = float(made[name].sum()) if name in made.columns else 0.0
        if not total:
            continue
        each = f" ({number(A_THOUSAND * total / kept)} per 1,000 pairs kept)" if kept else ""
        found.append((words, f"{number(total)}{each}"))
    return found
