"""Commands that judge policies: card."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - click reads annotations

import click

from flows.commands.flow_runs import workspace_at
from flows.commands.options import config_option, json_option, workspace_option


@click.command()
@click.option(
    "--policy",
    "models",
    multiple=True,
    required=True,
    help="A model folder, a hub id or `bundled`; the others are compared with the first.",
)
@config_option
@workspace_option
@json_option
def card(models: tuple[str, ...], config_file: Path, root: Path, as_json: bool) -> None:
    """Measure what policies can do, and mark what later ones do worse than the first.

    Bundled checks, your own texts and judged prompts, tasks of lm-eval: `evaluation.card`. Policies
    and files that were measured before are not measured again.

    \b
    Examples:
      prefmill card --policy bundled --policy my-model -c configs/refresh.yaml
      prefmill card --policy base --policy checkpoint-100 --policy final -c card.yaml --json
    """
    from flows.capability_card import page_of
    from flows.capability_card_page import print_card, write_page
    from flows.capability_run import named_policies, run_card
    from flows.configuration import load_config
    from flows.run_outputs import read_output

    workspace = workspace_at(root)
    config = load_config(config_file)
    workspace.require_writable()
    run_id = run_card(workspace, config, named_policies(models))
    found = read_output(workspace, run_id, "card", "capabilities")
    page = write_page(found, page_of(workspace, run_id))
    if as_json:
        told = {"run_id": run_id, "page": str(page), "capabilities": found.to_dicts()}
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        print_card(found)
        click.echo(page)
