"""The answer at the top of a report: a failure, the gate's ruling, or what the data came to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.report_facts import last_round, main_metric, of_round
from flows.report_numbers import NARROW_SPACE, count, number, percent, signed
from lineage.liveness import DEAD

if TYPE_CHECKING:
    import polars as pl

    from flows.report_facts import ReportData

ERROR_PARTS = {"Expected ": "Expected", "Where: ": "Where", "To mend it: ": "What to do"}
"""How `PrefmillError` begins its sentences, and what the page calls them."""
AGAIN = "Then run the same command again: what is finished is kept, and the run continues there."


@dataclass(frozen=True)
class Verdict:
    """What the page says first."""

    state: str
    """promoted, held, failed or data."""
    label: str
    headline: str
    detail: tuple[str, ...] = ()
    error: tuple[tuple[str, str], ...] = ()
    """Of a failed run: (heading, text): what happened, what was expected, where, what to do."""


def verdict(data: ReportData) -> Verdict:
    """Return the run's answer."""
    if data.run.get("status") == "failed":
        return _failure(data)
    if data.run.get("status") == DEAD:
        return _cut_short(data)
    if data.run.get("status") == "running":
        return Verdict("data", "Running", "This run has not ended.", (_stopped_after(data),))
    last = last_round(data)
    evaluations = of_round(data.evaluations, last)
    whole = evaluations if evaluations.is_empty() else evaluations.filter(stratum="all")
    metric = main_metric(whole)
    rows = [] if whole.is_empty() else whole.filter(metric=metric).to_dicts()
    rows.sort(key=lambda row: row["decoding"] != "sampled")
    promoted = _promoted(data, last)
    if data.pairs.is_empty() and not data.capabilities.is_empty():
        return _card(data.capabilities)
    if not rows or promoted is None:
        trained = "No model was trained." if last is None else "A model was trained; no gate ruled."
        return Verdict("data", "Data only", _kept_sentence(data.pairs), (trained,))
    gates = of_round(data.gates, last).to_dicts()
    first, others = rows[0], rows[1:]
    detail = [_ruling(gates, promoted=promoted)]
    detail += [f"{_interval(first)}, {first['decoding']} decoding."]
    detail += [f"With {r['decoding']} decoding it {_change(r)}: {_interval(r)}." for r in others]
    name = "success" if metric == "success" else metric.replace("_", " ")
    headline = f"Held-out {name} {_change(first)}."
    state, label = ("promoted", "Promoted") if promoted else ("held", "Held back")
    if promoted and not all(gate["passed"] for gate in gates):
        label = "Promoted by force"
    return Verdict(state, label, headline, tuple(detail))


def _card(capabilities: pl.DataFrame) -> Verdict:
    """Return what a capability card alone comes to."""
    regressed = capabilities.filter("regressed")
    names = "; ".join(
        f"{row['capability']}, {row['metric']}, {row['stratum']} of {row['policy']}"
        for row in regressed.iter_rows(named=True)
    )
    if names:
        return Verdict("held", "Card", "Not every capability was kept.", (f"Regressed: {names}.",))
    return Verdict("data", "Card", "No capability has regressed.")


def _cut_short(data: ReportData) -> Verdict:
    """Return what there is to say of a run whose process died without a word."""
    parts = (
        ("What happened", "Its process is gone: it was killed, or the machine went down."),
        ("How far it came", _stopped_after(data)),
        ("What to do", f"`prefmill resume {data.run.get('run_id')}` goes on with it."),
    )
    return Verdict("failed", "Dead", "This run was cut short.", error=parts)


def _failure(data: ReportData) -> Verdict:
    """Return what a failed run said, in its parts, and how far it came."""
    said = str(data.run.get("error") or "")
    first, *rest = re.split(r"(?<=\.) (?=Expected |Where: |To mend it: )", said)
    parts = [("What happened", first)] if first else []
    for sentence in rest:
        start = next(start for start in ERROR_PARTS if sentence.startswith(start))
        parts.append((ERROR_PARTS[start], sentence.removeprefix(start)))
    parts.append(("How far it came", _stopped_after(data)))
    if not any(heading == "What to do" for heading, _ in parts):
        parts.append(("What to do", "Mend what the error names."))
    where = f" in stage {data.failed_stage}" if data.failed_stage else ""
    return Verdict("failed", "Failed", f"This run failed{where}.", (AGAIN,), tuple(parts))


def _stopped_after(data: ReportData) -> str:
    if data.stage_runs.is_empty():
        return "No stage is finished."
    last = data.stage_runs.sort("position", "ended_at").row(-1, named=True)
    return f"The last finished stage is {last['stage']}; {data.stage_runs.height} are finished."


def _ruling(gates: list[dict[str, Any]], *, promoted: bool) -> str:
    """Return what decided the gate: the criteria that are not met, or that all are."""
    missed = [
        f"{gate['criterion']} ({number(gate['value'])}, limit {number(gate['limit'])})"
        for gate in gates
        if not gate["passed"]
    ]
    if missed:
        return f"Not met: {'; '.join(missed)}."
    if not gates:
        return ""
    verb = "promoted" if promoted else "held"
    return f"The gate {verb} it: {count(len(gates))} of {count(len(gates))} criteria are met."


def _promoted(data: ReportData, round_id: str | None) -> bool | None:
    """Return the gate's ruling on a round; None when there was none."""
    rounds, gates = of_round(data.rounds, round_id), of_round(data.gates, round_id)
    if not rounds.is_empty():
        return bool(rounds["promoted"][0])
    return None if gates.is_empty() else bool(gates["passed"].all())


def _change(row: dict[str, Any]) -> str:
    """Return what happened, said no more strongly than the interval allows."""
    show = percent if row["metric"] == "success" else number
    values = f"from {show(row['before'])} to {show(row['after'])}"
    if row["low"] > 0:
        return f"rose {values}"
    if row["high"] < 0:
        return f"fell {values}"
    return f"did not change measurably, {values}"


def _interval(row: dict[str, Any]) -> str:
    """Return the difference, its interval and what it was measured on."""
    factor, unit, digits = (100, " points", 1) if row["metric"] == "success" else (1, "", 3)
    change, low, high = (signed(row[k] * factor, digits) for k in ("difference", "low", "high"))
    zero = "" if row["low"] > 0 or row["high"] < 0 else ", which includes no change"
    interval = f"paired 95{NARROW_SPACE}% interval {low} to {high}{zero}"
    return f"{change}{unit} ({interval}) on {count(row['prompts'])} held-out prompts"


def _kept_sentence(pairs: pl.DataFrame) -> str:
    if pairs.is_empty():
        return "No pairs were made."
    if pairs["kept"].null_count():
        return f"{count(pairs.height)} pairs were made and not filtered."
    kept, share = int(pairs["kept"].sum()), pairs["kept"].mean()
    return f"{count(kept)} of {count(pairs.height)} pairs were kept ({percent(share)})."
