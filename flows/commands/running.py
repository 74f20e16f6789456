"""Commands that run the pipeline: demo, refresh, rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flows.commands.flow_runs import print_forecast, print_summary, run_refresh, run_rounds
from flows.commands.options import (
    DEMO_CONFIG,
    config_option,
    dry_run_option,
    force_option,
    json_option,
    promotion_option,
    workspace_option,
    yes_option,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1, 20))
@click.option("--seed", default=0, show_default=True, help="Of prompts, samples and training.")
@workspace_option
@json_option
def demo(rounds: int, seed: int, root: Path, as_json: bool) -> None:
    """Run on-policy rounds on the bundled tiny model, from prompts to a promoted policy.

    \b
    Examples:
      prefmill demo
      prefmill demo --rounds 3 --seed 1
    """
    run_ids = run_rounds(root, DEMO_CONFIG, {"rounds": rounds, "seed": seed})
    print_summary(root, run_ids, as_json)


@click.command()
@config_option
@workspace_option
@click.option(
    "--all-prompts", is_flag=True, help="Also prompts that earlier runs had (`prompts.only_new`)."
)
@dry_run_option
@yes_option
@json_option
def refresh(
    config_file: Path, root: Path, all_prompts: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Turn prompts into exported preference pairs.

    With `prompts.only_new` a run takes only prompts that no earlier run had; where there are none,
    there is nothing to do, which is no error.

    \b
    Examples:
      prefmill refresh -c configs/refresh.yaml --dry-run
      prefmill refresh -c configs/refresh.yaml
      prefmill refresh -c configs/refresh.yaml --all-prompts
      prefmill refresh -c configs/demo.yaml -w /data/nightly --json
    """
    overrides = {"prompts": {"only_new": False}} if all_prompts else {}
    if dry_run:
        print_forecast(root, config_file, overrides, ask_paid=yes, as_json=as_json)
        return
    run_ids = run_refresh(root, config_file, overrides, stored_only=False)
    if run_ids or as_json:  # no run: it has said that there was nothing to do
        print_summary(root, run_ids, as_json)


@click.command()
@config_option
@click.option("--rounds", type=click.IntRange(1, 1000), help="Overrides the file's `rounds`.")
@workspace_option
@dry_run_option
@yes_option
@force_option
@promotion_option
@json_option
def rounds(
    config_file: Path,
    rounds: int | None,
    root: Path,
    dry_run: bool,
    yes: bool,
    force: bool,
    require_promotion: bool,
    as_json: bool,
) -> None:
    """Run on-policy rounds: curate, train by DPO, evaluate, judge, promote; then again.

    A series ends earlier when the gate has held twice in a row (`stop_after_held`), or when there
    are no prompts left that no round had.

    \b
    Examples:
      prefmill rounds -c configs/demo.yaml --rounds 3 --dry-run
      prefmill rounds -c configs/demo.yaml --rounds 3
    """
    overrides: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if force:
        overrides["gate"] = {"force": True}
    if dry_run:
        print_forecast(root, config_file, overrides, ask_paid=yes, as_json=as_json, in_rounds=True)
        return
    run_ids = run_rounds(root, config_file, overrides)
    if run_ids or as_json:  # no round: it has said that no prompts are left
        print_summary(root, run_ids, as_json, require_promotion)
