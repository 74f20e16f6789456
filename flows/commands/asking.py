"""Commands that answer what happened and why: runs, sql, why, diff, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import click

from flows.commands.flow_runs import existing_workspace, run_named
from flows.commands.options import json_option, run_option, workspace_option


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

    found = list_runs(existing_workspace(root))
    records = [asdict(run) for run in found]
    if as_json:
        click.echo(json.dumps(records, indent=1, ensure_ascii=False))
        return
    fields = ("status", "started_at", "attempts", "error")
    rows = [
        # Of a policy that was trained here, the round: its folder's name.
        [record["run_id"], str(record["config"].get("policy", "")).rpartition("/models/")[2]]
        + [record[name] for name in fields]
        for record in records
    ]
    print_rows(("run_id", "policy", *fields), rows)
    for run in found:
        if run.status == "dead":
            click.echo(f"{run.run_id} died: `{run.continued_by}` goes on with it", err=True)


@click.command()
@click.argument("query", required=False)
@click.option("--file", "query_file", type=click.File(), help="Read the query there; - is stdin.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    help="By default that of --output's ending, else table.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the answer to this file.",
)
@workspace_option
def sql(
    query: str | None,
    query_file: IO[str] | None,
    output_format: str | None,
    output: Path | None,
    root: Path,
) -> None:
    """Ask the lineage a question in SQL. Read-only.

    \b
    Examples:
      prefmill sql "SELECT * FROM funnel"
      prefmill sql "SELECT stratum, avg(margin) FROM pair_quality WHERE kept GROUP BY 1"
      prefmill sql --format csv "SELECT * FROM drops" > drops.csv
      prefmill sql "FROM pair_quality" -o pairs.parquet
      prefmill sql --file question.sql
    """
    from flows.printing import print_frame, write_frame
    from lineage.query import query as ask

    if (query is None) == (query_file is None):
        raise click.UsageError("give the query, or --file with it")
    try:
        asked = query_file.read() if query_file else str(query)
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the query's file is not UTF-8: {error}") from None
    chosen = output_format or (output.suffix.removeprefix(".") if output else "table")
    if output and chosen not in {"csv", "json", "parquet"}:
        raise click.UsageError("--output takes a .csv, .json or .parquet file, or --format with it")
    if output is None and chosen == "parquet":
        raise click.UsageError("Parquet is no text: give --output FILE")
    frame = ask(existing_workspace(root), asked)
    if output is None:
        print_frame(frame, chosen)
    else:
        write_frame(frame, chosen, output)
        click.echo(f"{frame.height:,} rows in {output}", err=True)


@click.command()
@click.argument("asked", metavar="ID")
@click.option("--run", "run_id", help="Only what this run made of it: a run id or a prefix of one.")
@click.option("--full", is_flag=True, help="Show long texts whole.")
@workspace_option
@json_option
def why(asked: str, run_id: str | None, full: bool, root: Path, as_json: bool) -> None:
    """Tell the story of one pair, candidate, prompt or export: why it is (not) there.

    ID may be shortened to a prefix that fits one row only, or be an exported FILE or FILE:LINE
    (of Parquet, the row). A run, round, training or model's weights hash is told as well.

    \b
    Examples:
      prefmill why pair_1a2b3c
      prefmill why prefmill-workspace/exports/1a2b/train.jsonl:7
      prefmill why latest --json
    """
    from flows.printing import stdout
    from lineage.why import render
    from lineage.why import why as tell

    story = tell(existing_workspace(root), asked, run_id)
    if as_json:
        click.echo(json.dumps(story.to_json(), indent=1, ensure_ascii=False, default=str))
        return
    stdout().print(render(story, full=full))


@click.command()
@click.argument("run_ids", metavar="[RUN_A] [RUN_B]", nargs=-1)
@workspace_option
@json_option
def diff(run_ids: tuple[str, ...], root: Path, as_json: bool) -> None:
    """Tell what changed from RUN_A to RUN_B: settings, counts, quality, pairs, training.

    With one run, from the one before it of the same name and flow; with none, that of the latest.

    \b
    Examples:
      prefmill diff
      prefmill diff refresh_1a2b refresh_3c4d
      prefmill diff latest --json
    """
    from flows.printing import stdout
    from lineage.diff import diff as compare
    from lineage.diff import previous
    from lineage.diff_page import describe

    if len(run_ids) > 2:  # noqa: PLR2004
        raise click.UsageError(f"{len(run_ids)} runs; expected two at most")
    workspace = existing_workspace(root)
    before, after = run_ids if len(run_ids) == 2 else previous(workspace, *run_ids)  # noqa: PLR2004
    found = compare(workspace, before, after)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False, default=str))
        return
    stdout().print(describe(found))


@click.command()
@run_option
@workspace_option
@click.option("--series", is_flag=True, help="The page of all rounds that the run is one of.")
def report(run_id: str, root: Path, series: bool) -> None:
    """Write a run's report.html again, or its series.html, and print where it is.

    \b
    Examples:
      prefmill report
      prefmill report --series
    """
    from flows.report_data import report_run
    from flows.report_series import write_series

    write = write_series if series else report_run
    click.echo(write(existing_workspace(root), run_named(root, run_id)))
