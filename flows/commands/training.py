"""Commands that train on pairs that are there: train, train-file."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.flow_runs import print_summary, run_rounds, stored_config, workspace_at
from flows.commands.options import (
    config_option,
    force_option,
    json_option,
    promotion_option,
    run_option,
    workspace_option,
)


@click.command()
@run_option
@click.option(
    "--config",
    "-c",
    "config_file",
    type=click.Path(path_type=Path),
    help="Take the sections training, evaluation, gate and reference from this file.",
)
@workspace_option
@force_option
@promotion_option
@json_option
def train(
    run_id: str,
    config_file: Path | None,
    root: Path,
    force: bool,
    require_promotion: bool,
    as_json: bool,
) -> None:
    """Train on the pairs of a run, evaluate and judge; nothing stored is generated again.

    \b
    Examples:
      prefmill train
      prefmill train --run demo-refresh-1a2b3c4d5e -c stronger.yaml
      prefmill train --force
    """
    stored, overrides = stored_config(
        root, run_id, config_file, ("training", "evaluation", "gate", "reference")
    )
    # A run that was forced does not force those that take its settings.
    gate = {"force": False, **(overrides.get("gate") or {})}
    overrides["gate"] = {**gate, "force": True} if force else gate
    run_ids = run_rounds(root, stored, {**overrides, "rounds": 1})
    print_summary(root, run_ids, as_json, require_promotion)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the trained model; made by the command.",
)
@workspace_option
def train_file(file: Path, config_file: Path, output: Path, root: Path) -> None:
    """Train on a preference file: JSON Lines or Parquet with prompt, chosen and rejected.

    Read from the configuration are `policy`, which is the reference too, and `training`. Nothing
    is evaluated or judged.

    \b
    Examples:
      prefmill train-file pairs.jsonl -c configs/train/ipo.yaml -o my-model
    """
    from flows.configuration import load_config
    from flows.train_file import train_file as run_training

    result = run_training(file, load_config(config_file), workspace_at(root), output)
    click.echo(result.model_path)
