"""``report.html``: one self-contained page that says what a run did and whether it helped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flows import report_charts, report_tables
from flows.report_examples import examples
from flows.report_facts import ReportData, last_round, main_metric, of_round
from flows.report_graph import lineage_plot
from flows.report_numbers import count, duration, moment, number, percent, seconds
from flows.report_page import write_page
from flows.report_verdict import verdict
from stages.tables import RUNS

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

TEMPLATE = "report_template.html.jinja"


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report of one run to ``path``, by rename, and return ``path``."""
    facts = {**_outcome(data), **_curation(data), **_trust(data), **_record(data)}
    return write_page(TEMPLATE, path, facts)


def _outcome(data: ReportData) -> dict[str, Any]:
    """Return what the template names of the verdict, training and evaluation."""
    last = last_round(data)
    evaluations = of_round(data.evaluations, last)
    metric = main_metric(evaluations)
    lifts = evaluations if evaluations.is_empty() else evaluations.filter(metric=metric)
    metrics = of_round(data.training_metrics, last)
    return {
        "verdict": verdict(data),
        "figures": _figures(data),
        "gates": of_round(data.gates, last).to_dicts(),
        "metric": metric,
        "is_share": metric == "success",
        "lift": report_charts.lift(lifts, metric == "success"),
        "evaluations": sorted(evaluations.to_dicts(), key=_sampled_first),
        "curves": [] if metrics.is_empty() else report_charts.training_curves(metrics),
        "capabilities": data.capabilities.to_dicts(),
    }


def _sampled_first(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["decoding"] != "sampled", row["stratum"] != "all", row["stratum"], row["metric"]


def _curation(data: ReportData) -> dict[str, Any]:
    """Return what the template names of the funnel and the pairs."""
    pairs = data.pairs
    has_pairs = not pairs.is_empty()
    return {
        "funnels": report_tables.funnels(data.funnel),
        "filters": report_tables.filters(data.filters),
        "pairs": report_tables.pair_facts(pairs),
        "margins": report_charts.margins(pairs) if has_pairs else None,
        "scores": report_charts.scores(pairs) if has_pairs else None,
        "gaps": report_charts.length_gaps(pairs) if has_pairs else None,
        "preference": report_charts.length_preference(pairs) if has_pairs else None,
        "examples": examples(data.examples),
    }


def _trust(data: ReportData) -> dict[str, Any]:
    """Return what the template names of scorers and labels."""
    scores, margins = data.scores, data.judged_margins
    # The only scorer's margins are the pairs' own: shown with the pairs.
    several = not margins.is_empty() and margins["scorer"].n_unique() > 1
    return {
        "scorers": report_tables.scorers(data.scorers),
        "agreements": report_tables.agreements(data.scorers),
        "measures": report_tables.MEASURES,
        "scorer_scores": report_charts.of_scorers(scores, "score", "score"),
        "scorer_margins": report_charts.of_scorers(
            margins, "margin", "chosen \u2212 rejected score"
        )
        if several
        else {},
        "with_labels": report_tables.with_labels(margins),
        "noise": report_tables.noise(data.noise),
        "wrongness": report_charts.wrongness(data.pairs),
    }


def _record(data: ReportData) -> dict[str, Any]:
    """Return what the template names of the run itself and how it went."""
    return {
        "run": {
            **dict.fromkeys(RUNS.column_names, ""),
            **data.run,
            "policy": data.config.get("policy", ""),
        },
        "started": moment(data.run.get("started_at")),
        "took": duration(data.run),
        "series": data.series,
        "rounds": _in_order(data.rounds, "round_index"),
        "validations": _in_order(data.validations, "passed", "severity"),
        "drift": report_tables.drifted(data.drift),
        "stages": report_tables.stages(data.stage_runs),
        "costs": report_tables.costs(data),
        "graph": lineage_plot(data.lineage),
        "config": json.dumps(data.config, indent=2, ensure_ascii=False, default=str),
        "has_config": bool(data.config),
    }


def _figures(data: ReportData) -> list[tuple[str, str, str]]:
    """Return (value, name, note) for the row of figures under the verdict."""
    figures = []
    if not data.pairs.is_empty():
        facts = report_tables.pair_facts(data.pairs)
        figures += [
            (count(facts["kept"]), "pairs kept", f"of {count(facts['pairs'])} proposed"),
            (number(facts["margin"]), "median margin", "of the pairs kept"),
            (percent(facts["longer"]), "longer one chosen", "of pairs kept that differ in length"),
        ]
    if not data.validations.is_empty():
        held = int(data.validations["passed"].sum())
        broken = data.validations.height - held
        note = f"{count(broken)} broken" if broken else "none broken"
        figures.append((count(held), "expectations hold", note))
    if not data.stage_runs.is_empty():
        total = float(data.stage_runs["seconds"].sum())
        figures.append((seconds(total), "in stages", f"{data.stage_runs.height} stages"))
    return figures


def _in_order(frame: pl.DataFrame, *by: str) -> list[dict[str, Any]]:
    return [] if frame.is_empty() else frame.sort(*by, maintain_order=True).to_dicts()
