"""``report.html``: one self-contained page that says what a run did and whether it helped.

Everything is drawn when the page is made; the page itself needs no script and no network, and its
content security policy forbids both. All texts are escaped by Jinja2, and control and direction
characters are shown instead of obeyed.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from flows import report_charts
from lineage.story import visible
from stages.tables import GOLD_SPLIT, RUNS

TEMPLATE = Path(__file__).with_name("report_template.html.jinja")
MAX_CHARACTERS = 2_000
MAX_EXAMPLES = 40
MAX_WORDS_COMPARED = 1_500
MOSTLY_DIFFERENT = 0.9
NARROW_SPACE = "\u202f"
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


def _none() -> pl.DataFrame:
    return pl.DataFrame()


@dataclass(frozen=True)
class ReportData:
    """What a report shows. Any frame may be empty, even without columns."""

    run: dict[str, Any]
    """The columns of RUNS."""
    funnel: pl.DataFrame = field(default_factory=_none)
    """split, position, step, rows; a step called ``dropped: REASON`` is a drop."""
    filters: pl.DataFrame = field(default_factory=_none)
    """The view `filter_funnel`."""
    pairs: pl.DataFrame = field(default_factory=_none)
    """pair_id, stratum, split, scorer, margin, chosen_score, rejected_score, chosen_tokens,
    rejected_tokens, kept, reasons (list of text)."""
    examples: pl.DataFrame = field(default_factory=_none)
    """kind (best kept, narrowly kept, dropped: REASON), pair_id, prompt, chosen, rejected, margin,
    chosen_score, rejected_score."""
    scorers: pl.DataFrame = field(default_factory=_none)
    """The table SCORER_HEALTH."""
    training_metrics: pl.DataFrame = field(default_factory=_none)
    """round_id, step, metric, value."""
    evaluations: pl.DataFrame = field(default_factory=_none)
    """The table EVALUATIONS."""
    gates: pl.DataFrame = field(default_factory=_none)
    """The table GATES."""
    rounds: pl.DataFrame = field(default_factory=_none)
    """The table ROUNDS."""
    validations: pl.DataFrame = field(default_factory=_none)
    """The table VALIDATIONS and ``stage``."""
    stage_runs: pl.DataFrame = field(default_factory=_none)
    """The table STAGE_RUNS."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration."""


@dataclass(frozen=True)
class Verdict:
    """The answer that stands at the top of the page."""

    state: str
    """promoted, held, failed or data."""
    label: str
    headline: str
    detail: tuple[str, ...] = ()


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report of one run to ``path``, by rename, and return ``path``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_count, number=_number, percent=_percent, seconds=_seconds)
    page = environment.get_template(TEMPLATE.name).render(**_context(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _context(data: ReportData) -> dict[str, Any]:
    """Return what the template names."""
    last = last_round(data)
    evaluations = _of_round(data.evaluations, last)
    metric = _main_metric(evaluations)
    lifts = evaluations if evaluations.is_empty() else evaluations.filter(metric=metric)
    has_pairs = not data.pairs.is_empty()
    return {
        "run": {**dict.fromkeys(RUNS.column_names, ""), **data.run},
        "started": _moment(data.run.get("started_at")),
        "took": _duration(data.run),
        "verdict": verdict(data),
        "figures": _figures(data),
        "gates": _of_round(data.gates, last).to_dicts(),
        "funnels": funnels(data.funnel),
        "filters": filters(data.filters),
        "pairs": _pair_facts(data.pairs),
        "margins": report_charts.margins(data.pairs) if has_pairs else None,
        "scores": report_charts.scores(data.pairs) if has_pairs else None,
        "gaps": report_charts.length_gaps(data.pairs) if has_pairs else None,
        "preference": report_charts.length_preference(data.pairs) if has_pairs else None,
        "metric": metric,
        "is_share": metric == "success",
        "lift": report_charts.lift(lifts, metric == "success"),
        "evaluations": evaluations.to_dicts(),
        "scorers": scorers(data.scorers),
        "agreements": agreements(data.scorers),
        "measures": MEASURES,
        "curves": _curves(data, last),
        "examples": examples(data.examples),
        "rounds": _in_order(data.rounds, "round_index"),
        "validations": _in_order(data.validations, "passed", "severity"),
        "stages": _stages(data.stage_runs),
        "config": json.dumps(data.config, indent=2, ensure_ascii=False, default=str),
        "has_config": bool(data.config),
    }


def verdict(data: ReportData) -> Verdict:
    """Return the run's answer: a failure, the gate's ruling, or what the data came to."""
    if data.run.get("status") == "failed":
        return Verdict("failed", "Failed", "This run failed.", (str(data.run.get("error") or ""),))
    last = last_round(data)
    evaluations = _of_round(data.evaluations, last)
    whole = evaluations if evaluations.is_empty() else evaluations.filter(stratum="all")
    metric = _main_metric(whole)
    rows = [] if whole.is_empty() else whole.filter(metric=metric).to_dicts()
    rows.sort(key=lambda row: row["decoding"] != "sampled")
    promoted = _promoted(data, last)
    if not rows or promoted is None:
        trained = "No model was trained." if last is None else "A model was trained; no gate ruled."
        return Verdict("data", "Data only", _kept_sentence(data.pairs), (trained,))
    first, others = rows[0], rows[1:]
    detail = [f"{_interval(first)}, {first['decoding']} decoding."]
    detail += [f"With {r['decoding']} decoding it {_change(r)}: {_interval(r)}." for r in others]
    detail += [
        f"Not met: {gate['criterion']} ({_number(gate['value'])}, limit {_number(gate['limit'])})."
        for gate in _of_round(data.gates, last).to_dicts()
        if not gate["passed"]
    ]
    name = "success" if metric == "success" else metric.replace("_", " ")
    headline = f"Held-out {name} {_change(first)}."
    state, label = ("promoted", "Promoted") if promoted else ("held", "Held back")
    if promoted and not all(gate["passed"] for gate in _of_round(data.gates, last).to_dicts()):
        label = "Promoted by force"
    return Verdict(state, label, headline, tuple(detail))


def last_round(data: ReportData) -> str | None:
    """Return the id of the last round, or None when nothing was trained."""
    if not data.rounds.is_empty():
        return str(data.rounds.sort("round_index")["round_id"][-1])
    for frame in (data.evaluations, data.gates, data.training_metrics):
        if not frame.is_empty():
            return str(frame["round_id"][-1])
    return None


def _promoted(data: ReportData, round_id: str | None) -> bool | None:
    """Return the gate's ruling on a round; None when there was none."""
    rounds, gates = _of_round(data.rounds, round_id), _of_round(data.gates, round_id)
    if not rounds.is_empty():
        return bool(rounds["promoted"][0])
    return None if gates.is_empty() else bool(gates["passed"].all())


def _change(row: dict[str, Any]) -> str:
    """Return what happened, said no more strongly than the interval allows."""
    show = _percent if row["metric"] == "success" else _number
    values = f"from {show(row['before'])} to {show(row['after'])}"
    if row["low"] > 0:
        return f"rose {values}"
    if row["high"] < 0:
        return f"fell {values}"
    return f"did not change measurably, {values}"


def _interval(row: dict[str, Any]) -> str:
    """Return the difference, its interval and what it was measured on."""
    factor, unit, digits = (100, " points", 1) if row["metric"] == "success" else (1, "", 3)
    change, low, high = (_signed(row[k] * factor, digits) for k in ("difference", "low", "high"))
    zero = "" if row["low"] > 0 or row["high"] < 0 else ", which includes no change"
    interval = f"paired 95{NARROW_SPACE}% interval {low} to {high}{zero}"
    return f"{change}{unit} ({interval}) on {_count(row['prompts'])} held-out prompts"


def _kept_sentence(pairs: pl.DataFrame) -> str:
    if pairs.is_empty():
        return "No pairs were made."
    kept, share = int(pairs["kept"].sum()), pairs["kept"].mean()
    return f"{_count(kept)} of {_count(pairs.height)} pairs were kept ({_percent(share)})."


def _figures(data: ReportData) -> list[tuple[str, str, str]]:
    """Return (value, name, note) for the row of figures under the verdict."""
    figures = []
    if not data.pairs.is_empty():
        facts = _pair_facts(data.pairs)
        figures += [
            (_count(facts["kept"]), "pairs kept", f"of {_count(facts['pairs'])} proposed"),
            (_number(facts["margin"]), "median margin", "of the pairs kept"),
            (_percent(facts["longer"]), "longer one chosen", "of pairs kept that differ in length"),
        ]
    if not data.validations.is_empty():
        held = int(data.validations["passed"].sum())
        broken = data.validations.height - held
        note = f"{_count(broken)} broken" if broken else "none broken"
        figures.append((_count(held), "expectations hold", note))
    if not data.stage_runs.is_empty():
        total = float(data.stage_runs["seconds"].sum())
        figures.append((_seconds(total), "in stages", f"{data.stage_runs.height} stages"))
    return figures


def _pair_facts(pairs: pl.DataFrame) -> dict[str, Any]:
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
        for name, count in counts.items():
            reason = name.removeprefix("dropped: ") if name.startswith("dropped: ") else ""
            compared = "pairs" if reason or name == "kept" else COMPARED_WITH.get(name, before)
            steps.append({
                "name": reason or name, "dropped": bool(reason), "rows": count,
                "width": 100 * count / largest,
                "note": _compared(count, compared, counts.get(compared, 0)),
            })  # fmt: skip
            before = before if reason else name
        found.append({"split": split, "steps": steps})
    return found


def filters(filter_funnel: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return each split's filters in order; without any where none drops a pair."""
    if filter_funnel.is_empty():
        return {}
    dropping = filter_funnel.filter(pl.col("rulings").sum().over("split") > 0)
    by_split = dropping.sort("position").partition_by("split", as_dict=True)
    return {str(split): rows.to_dicts() for (split,), rows in by_split.items()}


def _compared(count: int, step: str, rows: int) -> str:
    """Return how a count compares with an earlier step's, in words."""
    if not rows or count == rows:
        return ""
    if count > rows:
        return f"{count / rows:.3g} per {step.removesuffix('s')}"
    return f"{_percent(count / rows)} of {step}"


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
    text = _percent(row["value"]) if kind == "share" else _number(row["value"])
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


def examples(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the examples with both texts shortened and cut into shared and own words."""
    shown = []
    for row in frame.head(MAX_EXAMPLES).iter_rows(named=True):
        kind = str(row["kind"])
        chosen, rejected = _shortened(row["chosen"]), _shortened(row["rejected"])
        marked = differences(chosen[0], rejected[0])
        shown.append({
            **row, "kept": not kind.startswith("dropped"),
            "kind": kind.removeprefix("dropped: "), "prompt": _shortened(row["prompt"]),
            "chosen": (marked[0], chosen[1]), "rejected": (marked[1], rejected[1]),
        })  # fmt: skip
    return shown


def differences(first: str, second: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return both texts as (stretch, is it only here) lists; the stretches join to the text.

    Words are compared, not characters. Texts with next to nothing in common are not marked.
    """
    from rapidfuzz.distance import LCSseq

    words: list[list[str]] = [re.findall(r"\S+\s*|\s+", text) for text in (first, second)]
    if max(map(len, words)) > MAX_WORDS_COMPARED:
        return [(first, False)], [(second, False)]
    keys = [[word.strip() for word in side] for side in words]
    marked: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for code in LCSseq.opcodes(keys[0], keys[1]):
        stretches = (
            words[0][code.src_start : code.src_end],
            words[1][code.dest_start : code.dest_end],
        )
        for side, stretch in zip(marked, stretches, strict=True):
            text = "".join(stretch)
            words_only = text.rstrip() if code.tag != "equal" else text
            pieces = [(words_only, code.tag != "equal"), (text[len(words_only) :], False)]
            side.extend((piece, own) for piece, own in pieces if piece)
    own = sum(len(t) for side in marked for t, only_here in side if only_here)
    if own > MOSTLY_DIFFERENT * (len(first) + len(second)):
        return [(first, False)], [(second, False)]
    return marked


def _shortened(text: object) -> tuple[str, str]:
    """Return the text's beginning, and a note when that is not all of it."""
    whole = "" if text is None else str(text)
    if len(whole) <= MAX_CHARACTERS:
        return whole, "" if whole.strip() else "empty"
    note = f"shortened: {_count(MAX_CHARACTERS)} of {_count(len(whole))} characters"
    return whole[:MAX_CHARACTERS], note


def _curves(data: ReportData, round_id: str | None) -> list[tuple[str, Markup]]:
    metrics = _of_round(data.training_metrics, round_id)
    return [] if metrics.is_empty() else report_charts.training_curves(metrics)


def _stages(stage_runs: pl.DataFrame) -> list[dict[str, Any]]:
    if stage_runs.is_empty():
        return []
    longest = max(float(stage_runs["seconds"].max() or 0), 1e-9)  # type: ignore[arg-type]
    rows = stage_runs.sort("position").to_dicts()
    return [{**row, "width": 100 * row["seconds"] / longest} for row in rows]


def _of_round(frame: pl.DataFrame, round_id: str | None) -> pl.DataFrame:
    return frame if frame.is_empty() else frame.filter(pl.col("round_id") == round_id)


def _in_order(frame: pl.DataFrame, *by: str) -> list[dict[str, Any]]:
    return [] if frame.is_empty() else frame.sort(*by, maintain_order=True).to_dicts()


def _main_metric(evaluations: pl.DataFrame) -> str:
    names: list[str] = [] if evaluations.is_empty() else evaluations["metric"].unique().to_list()
    return next((m for m in ("success", "score", *sorted(names)) if m in names), "")


def _shown(value: Any) -> Any:
    """Make texts from data visible on their way into the page; Jinja2 escapes them after this."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _count(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:,.3g}".replace("-", "\u2212")


def _percent(value: Any) -> str:
    return "none" if value is None else f"{100 * value:.1f}{NARROW_SPACE}%"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _seconds(value: float) -> str:
    if value < 60:  # noqa: PLR2004
        return f"{value:.1f}{NARROW_SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _moment(value: object) -> str:
    if not isinstance(value, datetime):
        return str(value or "")
    universal = value.astimezone(UTC) if value.tzinfo else value
    return f"{universal:%Y-%m-%d %H:%M} UTC"


def _duration(run: dict[str, Any]) -> str:
    start, end = run.get("started_at"), run.get("ended_at")
    if not (isinstance(start, datetime) and isinstance(end, datetime)):
        return ""
    took: timedelta = end - start
    return _seconds(took.total_seconds())
