"""The group of commands that look after the lineage: rebuild, gc, forget."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from flows.commands.flow_runs import existing_workspace
from flows.commands.options import json_option, workspace_option

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def lineage() -> None:
    """Look after the lineage: build it anew, remove old runs' texts, erase a prompt."""


@lineage.command()
@click.option("--verify-hashes", is_flag=True, help="Compare every part-file's bytes; reads all.")
@workspace_option
def rebuild(root: Path, verify_hashes: bool) -> None:
    """Make lineage.duckdb again from the part-files and records alone.

    \b
    Examples:
      prefmill lineage rebuild -w /moved/workspace
      prefmill lineage rebuild --verify-hashes
    """
    from lineage.database import rebuild as rebuild_database

    published = rebuild_database(existing_workspace(root), verify_hashes=verify_hashes)
    for problem in published.problems:
        click.echo(f"set aside: {problem}", err=True)
    click.echo(published.path)


@lineage.command()
@click.option(
    "--keep",
    type=click.IntRange(1),
    help="Keep, of each configuration's name, this many completed runs and what was run since.",
)
@click.option(
    "--older-than",
    "older_than_days",
    type=click.FloatRange(0, 100_000),
    help="Remove only runs started more than so many days ago.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@workspace_option
@json_option
def gc(
    keep: int | None, older_than_days: float | None, dry_run: bool, root: Path, as_json: bool
) -> None:
    """Remove old runs' texts, exports and models; their record stays (docs/lineage.md).

    Ids, scores, counts, hashes and rulings can still be asked for. What a kept run shares stays
    whole, and so does a model that is promoted or in use. A removed run that is started again
    makes anew what it lacks.

    \b
    Examples:
      prefmill lineage gc --keep 30 --dry-run
      prefmill lineage gc --keep 30 --older-than 90
    """
    from lineage.retention import Retention, collect, plan

    if keep is None and older_than_days is None:
        raise click.UsageError("say which runs go: --keep N, --older-than DAYS, or both")
    workspace = existing_workspace(root)
    planned = plan(workspace, Retention(keep, older_than_days))
    files: dict[str, int] = {}
    if not dry_run:
        for removal in collect(workspace, planned):
            files |= removal.files
    freed = planned.bytes if dry_run else sum(files.values())
    if as_json:
        said = {"dry_run": dry_run, "runs": planned.runs, "bytes": freed, "files": files}
        click.echo(json.dumps(said, indent=1))
        return
    for run_id in planned.runs:
        click.echo(run_id)
    what = "would free about" if dry_run else "freed"
    click.echo(f"{len(planned.runs)} runs, {what} {freed / 1e6:,.1f} MB", err=True)


@lineage.command()
@click.option("--prompt", "prompt_id", required=True, help="The whole id of the prompt.")
@click.option("--reason", default="", help="Kept with the record of the erasure.")
@click.option("--dry-run", is_flag=True, help="Say where it is; change nothing.")
@workspace_option
@json_option
def forget(prompt_id: str, reason: str, dry_run: bool, root: Path, as_json: bool) -> None:
    """Erase a prompt and all that was made of it, everywhere in the workspace.

    What a model has learned from it cannot be erased: the models trained on it are named. Later
    runs pass the prompt over, also where a source still has it.

    \b
    Examples:
      prefmill lineage forget --prompt prompt_0123456789abcdef0123 --dry-run
      prefmill lineage forget --prompt prompt_0123456789abcdef0123 --reason "request 17"
    """
    from flows.erased_prompts import cut_short, redraw, sources_with
    from lineage.erasure import find, models_of
    from lineage.erasure import forget as erase

    workspace = existing_workspace(root)
    found = find(workspace, prompt_id)
    sources = sources_with(workspace, {prompt_id, *found.alike}, found.runs)
    files, left = sorted(map(workspace.relative, found.parts)), []
    if not dry_run:
        erasure = erase(workspace, found, reason)
        files, left = erasure.files, erasure.left_in
        redraw(workspace, [run for run in found.runs if f"runs/{run}/report.html" in files])
    checkpoints = [workspace.relative(folder) for folder in cut_short(workspace.checkpoints)]
    said = {
        "dry_run": dry_run,
        "rows": found.rows,
        "files": files,
        "runs": found.runs,
        "trained_in": found.trained_in,
        "checkpoints": checkpoints,
        "left_in": left,
        "sources": sources,
    }
    if as_json:
        click.echo(json.dumps(said, indent=1, ensure_ascii=False))
        return
    done = "would erase" if dry_run else "erased"
    click.echo(f"{done} {found.rows} rows; {len(files)} files; runs {', '.join(found.runs)}")
    for folder in models_of(workspace, found.trained_in):
        click.echo(f"trained on it, and cannot unlearn it: {folder}", err=True)
    for folder in checkpoints:
        sentence = "a training was cut short and may have learned from it; delete the folder"
        click.echo(f"{folder}: {sentence}", err=True)
    for name in left:
        click.echo(f"its words are still in {name}: delete that by hand", err=True)
    for name in sources:
        click.echo(f"still in the source {name}: runs pass it over; delete it there too", err=True)
