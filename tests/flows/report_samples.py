"""Data of reports, made by hand; ``full`` has every part."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from flows.report_facts import ReportData
from flows.report_graph import Node
from stages.tables import (
    CAPABILITIES,
    DRIFT,
    EVALUATIONS,
    GATES,
    ROUNDS,
    SCORER_HEALTH,
    STAGE_RUNS,
    VALIDATIONS,
)

HOSTILE = "<script>alert('x')</script>{{7*7}}\u202e\x07\"'&]]>"
RUN = {
    "run_id": "dpo_round-1", "flow": "dpo_round", "name": "demo", "round_index": 1,
    "code_version": "0.1.0", "status": "completed", "error": None,
    "started_at": datetime(2026, 11, 21, 9, 30, tzinfo=UTC),
    "ended_at": datetime(2026, 11, 21, 9, 33, 2, tzinfo=UTC),
}  # fmt: skip


def table(schema, *rows):
    return pl.DataFrame(rows, schema=schema.empty().schema, orient="row")


def evaluation(low, high, *, decoding="sampled", stratum="all", before=0.312, after=0.45):
    difference = after - before
    return ("r1", "success", decoding, stratum, 500, before, after, difference, low, high)


def make_pairs(rows=40):
    i = pl.int_range(rows)
    return pl.select(
        pair_id="p" + i.cast(pl.String), stratum=pl.lit("copying"), split=pl.lit("train"),
        scorer=pl.lit("rules"), margin=i / rows, chosen_score=i / rows, rejected_score=i * 0.0,
        chosen_tokens=i % 7 + 1, rejected_tokens=i % 5 + 1, kept=i >= rows // 4,
        confidence=1 - i / rows / 2, reasons=pl.lit([], pl.List(pl.String)),
    )  # fmt: skip


def example(kind="best kept", prompt="Count.", chosen="1 2 3", rejected="1 2 4"):
    columns = ["kind", "pair_id", "prompt", "chosen", "rejected"]
    row = pl.DataFrame([[kind, "p1", prompt, chosen, rejected]], schema=columns, orient="row")
    return row.with_columns(margin=0.5, chosen_score=1.0, rejected_score=0.5)


def filter_rows(*filters):
    """Return `filter_funnel` of one split from (filter, drops, pairs left)."""
    rows = [
        {"split": "train", "position": place, "filter": name, "reason": name, "limit": None,
         "pairs_in": drops + out, "first_drops": drops, "pairs_out": out, "rulings": drops,
         "only_drops": drops, "unmeasured": 0}
        for place, (name, drops, out) in enumerate(filters)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def full(text="plain"):
    """Return a report's data with ``text`` wherever data may hold any text."""
    stratum = [evaluation(0.1, 0.2), evaluation(-0.1, 0.2, stratum=text, decoding="greedy")]
    metrics = [("r1", s, m, 1.0 / s) for s in (1, 2, 3) for m in ("loss", "rewards/chosen", text)]
    return ReportData(
        run={**RUN, "name": text},
        funnel=pl.DataFrame(
            [("train", 0, "prompts", 10), ("train", 1, "pairs", 8),
             ("train", 2, f"dropped: {text}", 3), ("train", 3, "kept", 5)],
            schema=["split", "position", "step", "rows"], orient="row",
        ),
        filters=filter_rows((text, 3, 5)),
        pairs=make_pairs().with_columns(stratum=pl.lit(text), scorer=pl.lit(text)),
        examples=pl.concat([example(f"dropped: {text}", text, text, text + " more"), example()]),
        training_metrics=pl.DataFrame(
            metrics, schema=["round_id", "step", "metric", "value"], orient="row"
        ),
        evaluations=table(EVALUATIONS, *stratum),
        gates=table(GATES, ("r1", text, 0.1, 0.0, True)),
        rounds=table(ROUNDS, ("r1", 1, "e1", text, text, "policy", text, text, 5, 3, True)),
        validations=table(VALIDATIONS, (text, text, text, "should", False, 10, 1, text))
        .with_columns(stage=pl.lit(text)),
        stage_runs=table(STAGE_RUNS, ("x", text, 0, text, "made", text, 2.5, RUN["ended_at"]))
        .with_columns(calls=40, tokens_read=900, tokens_written=1500, cost=0.25),
        scorers=table(SCORER_HEALTH, (text, "tie_rate", 0.25, 8, 0.2, False)),
        scores=pl.DataFrame({"scorer": [text, text, "b"], "score": [0.1, 0.9, None]}),
        judged_margins=pl.DataFrame(
            {"scorer": [text] * 4 + ["b"], "margin": [-1.0, 0.0, 1.0, 2.0, 1.0], "kept": True}
        ),
        noise=pl.DataFrame([
            {"scorer": text, "method": text, "rate": 0.1, "low": 0.05, "high": 0.2,
             "rate_kept": 0.04, "pairs": 40, "calibration_pairs": 12, "note": text},
        ]),
        drift=table(DRIFT, (text, "psi", 0.4, None, 0.2, False, 10, 10, text)),
        capabilities=table(CAPABILITIES, (
            text, "w1", "w0", text, text, "all", 9, 0.5, 0.4, 0.6, 9, -0.2, -0.3, -0.1, True, 0.0,
            True,
        )),
        lineage=(Node("prompts", "k0", (), "prompts", 10), Node(text, "k1", ("k0",), text, 3, 1.0)),
        failed_stage=text,
        series="../first/series.html",
        config={text: [text]},
    )  # fmt: skip
