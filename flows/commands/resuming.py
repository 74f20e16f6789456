"""The command that continues what did not end: resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flows.commands.flow_runs import existing_workspace, print_summary, run_refresh, run_rounds
from flows.commands.options import json_option, to_paste, workspace_option

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.records import RunRecord


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@workspace_option
@json_option
def resume(run_id: str | None, root: Path, as_json: bool) -> None:
    """Continue a run that failed, was interrupted or died, with its stored configuration.

    RUN is its id, a prefix of it, or `latest`: the last of them. Without it they are listed. What
    is finished is kept, and so are the prompts it had sampled, whatever has become of their source;
    of a series of rounds, those that were still to come follow.

    \b
    Examples:
      prefmill resume
      prefmill resume latest
      prefmill resume demo-round2-1a2b3c4d5e -w /data/nightly
    """
    from flows.progress import say
    from flows.prompt_choice import of_run_to_resume
    from flows.resuming import done_before, resumable, run_to_resume

    workspace = existing_workspace(root)
    if run_id is None:
        _print_list(resumable(workspace), as_json)
        return
    run = run_to_resume(workspace, run_id)
    for sentence in done_before(workspace, run):
        say(sentence)
    stored, its_prompts = workspace.stored_config(run.run_id), of_run_to_resume(workspace, run)
    if run.flow == "refresh":
        run_ids = run_refresh(root, stored, its_prompts, stored_only=False)
    else:
        run_ids = run_rounds(root, stored, its_prompts)
    if run.run_id not in run_ids:
        say("a file or model that it was begun with has changed since: this is a run of its own")
    print_summary(root, run_ids, as_json)


def _print_list(runs: list[RunRecord], as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from flows.printing import print_rows

    if as_json:
        click.echo(json.dumps([asdict(run) for run in runs], indent=1, ensure_ascii=False))
        return
    if not runs:
        click.echo("every run has ended well or is under way", err=True)
        return
    fields = ("run_id", "status", "started_at", "error")
    print_rows(fields, [[getattr(run, name) for name in fields] for run in runs])
    click.echo(to_paste("continue one with `prefmill resume RUN`"), err=True)
