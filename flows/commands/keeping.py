"""The group of commands that look after lineage.duckdb."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flows.commands.flow_runs import workspace_at
from flows.commands.options import workspace_option

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def lineage() -> None:
    """Look after lineage.duckdb."""


@lineage.command()
@workspace_option
def rebuild(root: Path) -> None:
    """Make lineage.duckdb again from the part-files and records alone.

    \b
    Examples:
      prefmill lineage rebuild -w /moved/workspace
    """
    from lineage.database import rebuild as rebuild_database

    published = rebuild_database(workspace_at(root))
    for problem in published.problems:
        click.echo(f"set aside: {problem}", err=True)
    click.echo(published.path)
