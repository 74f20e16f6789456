"""A series of rounds as one page: success, win rate, KL and pairs, round by round."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from flows import report_charts
from flows.report_facts import headline_metric
from flows.report_numbers import count, moment, number, percent
from flows.report_page import write_page
from flows.report_verdict import Verdict
from flows.run_outputs import read_output
from lineage.liveness import DEAD
from lineage.records import list_runs, require_run
from stages.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.records import RunRecord
    from lineage.workspace import Workspace

TEMPLATE = "series_template.html.jinja"
EVEN = 0.5
"""The win rate of a policy against itself."""
SERIES_SCHEMA = {
    "round": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "state": pl.String,
}


def series_of(workspace: Workspace, run_id: str) -> list[RunRecord]:
    """Return the rounds that a run is one of, the first round first; none if it is no round.

    A round follows the last run of its name and of the round before that was started before it.
    """
    run = require_run(workspace, run_id)
    if not run.round_index:
        return []
    named = [r for r in list_runs(workspace) if r.name == run.name and r.flow == run.flow]
    rounds = [run]
    while before := _before(rounds[0], named):
        rounds.insert(0, before)
    while after := [r for r in named if _before(r, named) == rounds[-1]]:
        rounds.append(min(after, key=_started))
    return rounds


def _before(run: RunRecord, named: list[RunRecord]) -> RunRecord | None:
    earlier = [
        r for r in named if r.round_index + 1 == run.round_index and _started(r) <= _started(run)
    ]
    return max(earlier, key=_started, default=None)


def _started(run: RunRecord) -> datetime:
    return datetime.fromisoformat(run.started_at)


def series_path(workspace: Workspace, rounds: list[RunRecord]) -> Path:
    """Return where the page of a series lies: in the folder of its first round."""
    return workspace.runs / rounds[0].run_id / "series.html"


def series_page(workspace: Workspace, run_id: str) -> str:
    """Return the address of the series' page in the run's own; "" if it is alone and stays so."""
    rounds = series_of(workspace, run_id)
    if len(rounds) > 1 or (rounds and rounds[0].config.get("rounds", 1) > 1):
        return f"../{rounds[0].run_id}/series.html"
    return ""


def write_series(workspace: Workspace, run_id: str) -> Path:
    """Write the page of the rounds that ``run_id`` is one of, and return its path.

    Raises:
        DataError: it is no round.
    """
    rounds = series_of(workspace, run_id)
    if not rounds:
        raise DataError(
            f"run {run_id!r} is no round",
            expected="a run of the flow dpo_round",
            remedy="`prefmill runs` lists them; without --series a run has a page of its own",
        )
    rows = [_row(workspace, run) for run in rounds]
    return write_page(TEMPLATE, series_path(workspace, rounds), context(rounds[0].name, rows))


def context(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the template names; ``rows`` are `_row`'s."""
    return {
        "name": name,
        "rows": rows,
        "verdict": series_verdict(rows),
        "plots": [(title, note, plot) for title, note, plot in _plots(rows) if plot],
        "started": moment(_started(rows[0]["run"])),
        "version": rows[-1]["run"].code_version,
    }


def _row(workspace: Workspace, run: RunRecord) -> dict[str, Any]:
    """Return what the page shows of one round; parts are None where the round hasn't got there."""
    rounds = read_output(workspace, run.run_id, "gate", "rounds").to_dicts()
    gates = read_output(workspace, run.run_id, "gate", "gates").to_dicts()
    measured = read_output(workspace, run.run_id, "gate", "evaluations")
    whole = {
        (row["metric"], row["decoding"]): row for row in measured.filter(stratum="all").to_dicts()
    }
    metric = headline_metric([name for name, decoding in whole if decoding == "sampled"])
    growth = whole.get(("completion_tokens", "sampled"))
    return {
        "run": run,
        "round": rounds[0] if rounds else None,
        "state": _state(run, rounds),
        "forced": bool(rounds and rounds[0]["promoted"] and not all(g["passed"] for g in gates)),
        "missed": [gate for gate in gates if not gate["passed"]],
        "metric": metric,
        "sampled": whole.get((metric, "sampled")),
        "greedy": whole.get((metric, "greedy")),
        "win_rate": whole.get(("length_controlled_win_rate", "sampled")),
        "kl": whole.get(("kl_nats", "sampled")),
        "growth": growth["after"] / growth["before"] if growth and growth["before"] else None,
    }


def _state(run: RunRecord, rounds: list[dict[str, Any]]) -> str:
    if rounds:
        return "promoted" if rounds[0]["promoted"] else "held"
    return "failed" if run.status in {"failed", DEAD} else "running"


def series_verdict(rows: list[dict[str, Any]]) -> Verdict:
    """Return what the series came to: the measure before the first and after the last promotion."""
    judged = [row for row in rows if row["sampled"]]
    promoted = [row for row in judged if row["state"] == "promoted"]
    states = [row["state"] for row in rows]
    counts = ", ".join(
        f"{states.count(state)} {word}"
        for state, word in (
            ("promoted", "promoted"), ("held", "held back"), ("failed", "failed"),
            ("running", "not ended"),
        )
        if state in states
    )  # fmt: skip
    told = f"{count(len(rows))} rounds: {counts}."
    if not judged:
        return Verdict("data", "No verdict", "No round has been judged.", (told,))
    show = percent if judged[0]["metric"] == "success" else number
    first = judged[0]["sampled"]["before"]
    stays = f"; {judged[0]['metric']} stays at {show(first)}" if _adds_up(judged) else ""
    if not promoted:
        return Verdict("held", "Held back", f"No round was promoted{stays}.", (told,))
    last = promoted[-1]["sampled"]["after"]
    went = "went" if last == first else "rose" if last > first else "fell"
    headline = f"Held-out {judged[0]['metric']} {went} from {show(first)} to {show(last)}."
    if not _adds_up(judged):
        headline = f"The last promoted round wins {percent(last)} against the policy before."
    each = (
        "Sampled decoding; each round's interval is in the table, the series as a whole has none."
    )
    return Verdict("promoted", "Promoted", headline, (told, each))


def _adds_up(judged: list[dict[str, Any]]) -> bool:
    """Return whether the measure goes on from round to round: a win rate is of one round."""
    return judged[0]["sampled"] is not judged[0]["win_rate"]


def _plots(rows: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    """Return (title, caption, plot or None) of what changes from round to round."""
    judged = [row for row in rows if row["sampled"]]
    if not judged:
        return []
    metric, share = judged[0]["metric"], judged[0]["metric"] == "success"
    start = (judged[0]["run"].round_index - 1, judged[0]["sampled"]["before"], None, None, "start")
    course = [start, *(_after(row) for row in judged)]
    wins = [_point(row, "win_rate", EVEN) for row in judged]
    divergence = [_point(row, "kl") for row in judged]
    pairs = [
        (row["run"].round_index, row["round"]["pairs"], None, None, row["state"])
        for row in rows
        if row["round"]
    ]
    note = "A line: the paired 95 % interval of the change in that round."
    held = "A round that is held back leaves the policy as it was."
    even = "Against the policy before the round; on the dashed line neither wins."
    plots = [
        (metric.capitalize(), f"After each round, sampled decoding. {note} {held}",
         report_charts.by_round("course", _frame(course), metric, percent=share)),
        ("Win rate, length-controlled", even,
         report_charts.by_round("wins", _frame(wins), "win rate", EVEN, percent=True)),
        ("KL from the policy before", "Nats per answer, on sampled answers.",
         report_charts.by_round("kl-rounds", _frame(divergence), "KL, nats", 0.0)),
        ("Pairs trained on", "", report_charts.by_round("trained", _frame(pairs), "pairs", 0.0)),
    ]  # fmt: skip
    return plots if _adds_up(judged) else plots[1:]


def _after(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the measure after a round, with the interval of its change around it."""
    measured = row["sampled"]
    ends = (measured["before"] + measured[end] for end in ("low", "high"))
    return (row["run"].round_index, measured["after"], *ends, row["state"])


def _point(row: dict[str, Any], name: str, base: float = 0.0) -> tuple[Any, ...]:
    measured = row[name]
    if measured is None:
        return (row["run"].round_index, None, None, None, row["state"])
    ends = (base + measured[end] for end in ("low", "high"))
    return (row["run"].round_index, measured["after"], *ends, row["state"])


def _frame(points: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(points, schema=SERIES_SCHEMA, orient="row")
