"""What Prefect's UI shows of a run: its funnel, a summary, and where its pages are.

The keys stay the same from run to run of a name, so that the UI shows their history. No text of a
prompt or a completion goes into an artifact.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect.context import FlowRunContext

from flows.progress import say
from flows.report_data import gather, write_pages
from flows.report_facts import last_round, of_round
from flows.report_numbers import count, number
from flows.report_tables import funnels
from flows.report_verdict import verdict
from lineage.story import visible

if TYPE_CHECKING:
    from pathlib import Path

    from flows.report_facts import ReportData
    from lineage.workspace import Workspace

PUNCTUATION = re.compile(r"([!-%'-/:;=?-@\[-`{-~])")
"""ASCII's, which Markdown takes literally after a backslash, but `&`, `<` and `>`."""
ENTITIES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def show_run(workspace: Workspace, run_id: str) -> Path:
    """Write a run's pages and, within a flow, its artifacts; return where the report is."""
    data = gather(workspace, run_id)
    path = write_pages(workspace, data)
    if FlowRunContext.get() is not None:
        try:
            _create(data, path)
        except Exception as error:  # noqa: BLE001 - the run itself is done and on record
            say(f"Prefect's artifacts could not be made: {type(error).__name__}: {error}")
    return path


def _create(data: ReportData, report: Path) -> None:
    from prefect.artifacts import (
        create_link_artifact,
        create_markdown_artifact,
        create_table_artifact,
    )

    key = artifact_key(str(data.run["name"]))
    run = str(data.run["run_id"])
    create_markdown_artifact(summary(data, report), key=f"{key}-summary", description=run)
    create_link_artifact(
        report.resolve().as_uri(), "report.html", key=f"{key}-report", description=run
    )
    if rows := funnel_rows(data):
        create_table_artifact(rows, key=f"{key}-funnel", description=run)


def artifact_key(name: str) -> str:
    """Return ``name`` as Prefect allows a key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


def funnel_rows(data: ReportData) -> list[dict[str, Any]]:
    """Return split, step, rows and what they compare with, as the report's funnel has them."""
    return [
        {
            "split": funnel["split"],
            "step": visible(("dropped: " if step["dropped"] else "") + step["name"]),
            "rows": step["rows"],
            "share": step["note"],
        }
        for funnel in funnels(data.funnel)
        for step in funnel["steps"]
    ]


def summary(data: ReportData, report: Path) -> str:
    """Return the run's verdict, the gate's criteria and the places, in Markdown."""
    said = verdict(data)
    parts = [f"## {literal(said.label)}", f"**{literal(said.headline)}**"]
    parts += [f"{heading}: {literal(text)}" for heading, text in said.error]
    parts += [literal(sentence) for sentence in said.detail if sentence]
    if gates := of_round(data.gates, last_round(data)).to_dicts():
        rows = [
            f"| {literal(gate['criterion'])} | {number(gate['value'])} | {number(gate['limit'])} "
            f"| {'yes' if gate['passed'] else '**no**'} |"
            for gate in gates
        ]
        heads = ["| criterion | measured | limit | met |", "|---|---:|---:|---|"]
        parts.append("\n".join([*heads, *rows]))
    if not data.validations.is_empty():
        broken = data.validations.filter(~data.validations["passed"])
        names = [
            f"- {literal(row['table'])}, {literal(row['column'])}: {literal(row['expectation'])}"
            for row in broken.iter_rows(named=True)
        ]
        kept = count(data.validations.height - broken.height)
        parts.append("\n".join([f"{kept} expectations hold, {len(names)} do not.", "", *names]))
    places = {"Run": str(data.run["run_id"]), "Report": str(report.resolve())}
    parts += [f"{name}: {literal(place)}" for name, place in places.items()]
    return "\n\n".join(parts) + "\n"


def literal(text: str) -> str:
    """Return ``text`` on one line so that Markdown shows every character and obeys none."""
    line = " ".join(visible(text).split())
    return PUNCTUATION.sub(r"\\\1", line).translate(ENTITIES)
