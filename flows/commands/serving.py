"""Commands that start and stop what runs by schedule: up, down."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.flow_runs import workspace_at
from flows.commands.options import to_paste, workspace_option


@click.command()
@click.option(
    "--deployments",
    default="prefect.yaml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="What to deploy, and when it runs.",
)
@click.option(
    "--port", default=4200, show_default=True, help="Of the server, on this machine only."
)
@click.option(
    "--alert-webhook",
    metavar="URL",
    envvar="PREFMILL_ALERT_WEBHOOK",
    help="Post there when a run fails or crashes, a check is broken, or a gate rules. The server "
    "keeps the address encrypted; without it alerts stay as they are.",
)
@workspace_option
def up(deployments: Path, port: int, alert_webhook: str | None, root: Path) -> None:
    """Start a Prefect server, a work pool and a worker, and deploy every flow.

    The flows run in this folder. Called again, it brings the deployments up to date.

    \b
    Examples:
      prefmill up
      prefmill up -w /data/nightly --port 4300
      PREFMILL_ALERT_WEBHOOK=https://hooks.example.org/... prefmill up
    """
    from flows.service import home, start

    workspace = workspace_at(root)
    service = start(workspace, deployments, port, alert_webhook)
    click.echo(f"{service.ui}  the UI: deployments, runs, artifacts")
    click.echo(f"{home(workspace)}  the server's and the worker's logs")
    click.echo(to_paste("stop it with `prefmill down`"))


@click.command()
@workspace_option
def down(root: Path) -> None:
    """Stop the worker and the server that `prefmill up` started; a run under way stops too.

    Nothing finished is lost: the next run of the deployment goes on with it.

    \b
    Examples:
      prefmill down
    """
    from flows.service import stop

    click.echo("stopped" if stop(workspace_at(root)) else "nothing was running")
