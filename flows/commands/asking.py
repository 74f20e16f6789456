"""Commands that answer what happened and why: runs, sql, why, report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from flows.commands.flow_runs import run_named, workspace_at
from flows.commands.options import json_option, run_option, workspace_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@workspace_option
@json_option
def runs(root: Path, as_json: bool) -> None:
    """List the runs of a workspace, newest first.

    \b
    Examples:
      prefmill runs
      prefmill runs --json
    """
    from dataclasses import asdict

    from flows.printing import print_rows
    from lineage.records import list_runs

    records = [asdict(record) for record in list_runs(workspace_at(root))]
    if as_json:
        click.echo(json.dumps(records, indent=1, ensure_ascii=False))
        return
    fields = ("run_id", "status", "started_at", "attempts", "error")
    rows = [[record[name] for name in fields] for record in records]
    print_rows(fields, rows)


@click.command()
@click.argument("query")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
)
@workspace_option
def sql(query: str, output: str, root: Path) -> None:
    """Ask the lineage a question in SQL. Read-only.

    \b
    Examples:
      prefmill sql "SELECT * FROM funnel"
      prefmill sql "SELECT stratum, avg(margin) FROM pair_quality WHERE kept GROUP BY 1"
      prefmill sql --format csv "SELECT * FROM drops" > drops.csv
    """
    from flows.printing import print_frame
    from lineage.query import query as ask

    print_frame(ask(workspace_at(root), query), output)


@click.command()
@click.argument("row_id", metavar="ID")
@workspace_option
@json_option
def why(row_id: str, root: Path, as_json: bool) -> None:
    """Tell the story of one pair, candidate, prompt or export: why it is (not) there.

    ID may be shortened to a prefix that fits one row only, or be FILE:LINE of an exported JSONL.

    \b
    Examples:
      prefmill why pair_1a2b3c
      prefmill why prefmill-workspace/exports/1a2b/train.jsonl:7
    """
    from flows.printing import stdout
    from lineage.why import render
    from lineage.why import why as tell

    story = tell(workspace_at(root), row_id)
    if as_json:
        click.echo(json.dumps(story.to_json(), indent=1, ensure_ascii=False, default=str))
        return
    stdout().print(render(story))


@click.command()
@run_option
@workspace_option
def report(run_id: str, root: Path) -> None:
    """Write a run's report.html again and print where it is.

    \b
    Examples:
      prefmill report
    """
    from flows.report_data import report_run

    click.echo(report_run(workspace_at(root), run_named(root, run_id)))
