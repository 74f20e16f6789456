"""Commands that train on what is there: train, train-file, sft, reward-model."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.flow_runs import (
    print_summary,
    run_named,
    run_rounds,
    stored_config,
    workspace_at,
)
from flows.commands.options import (
    config_file_option,
    config_option,
    force_option,
    json_option,
    promotion_option,
    run_option,
    workspace_option,
)

output_option = click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the trained model; made by the command.",
)
training_config_option = config_file_option("YAML file with `policy` and the training's section.")


@click.command()
@run_option
@config_file_option(
    "Take the sections training, evaluation, gate and reference from this file.", required=False
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
    from flows.changes import unforced

    stored, overrides = stored_config(
        root, run_id, config_file, ("training", "evaluation", "gate", "reference")
    )
    overrides = unforced({**overrides, "rounds": 1})
    if force:
        overrides["gate"]["force"] = True
    run_ids = run_rounds(root, stored, overrides)
    print_summary(root, run_ids, as_json, require_promotion)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@output_option
@workspace_option
def train_file(file: Path, config_file: Path, output: Path, root: Path) -> None:
    """Train on a preference file: JSON Lines or Parquet with prompt, chosen and rejected.

    Read from the configuration are `policy`, which is the reference too, and `training`. Nothing
    is evaluated or judged.

    \b
    Examples:
      prefmill train-file pairs.jsonl -c configs/train/ipo.yaml -o my-model
    """
    from flows.configuration import TrainingFileConfig, load_config
    from flows.train_file import train_file as run_training

    config = load_config(config_file, kind=TrainingFileConfig)
    result = run_training(file, config, workspace_at(root), output)
    click.echo(result.model_path)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@training_config_option
@output_option
@workspace_option
def sft(file: Path, config_file: Path, output: Path, root: Path) -> None:
    """Fine-tune a model on the answers of a JSON Lines or Parquet file.

    It has `messages`, or `prompt` with `completion`, or `prompt` with `chosen` of a preference
    file. Prompts are read and not learned. The loss on held-out rows is printed before and after.

    \b
    Examples:
      prefmill sft answers.jsonl -c configs/sft.yaml -o my-model
      prefmill sft pairs.jsonl -c configs/sft.yaml -o my-model   (the chosen answers)
    """
    from flows.single_training import SFTFileConfig, load_file_config, train_sft

    config = load_file_config(SFTFileConfig, config_file)
    result = train_sft(file, config, workspace_at(root), output)
    click.echo(result.model_path)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--run", "run_id", help="Train on what this run exported, in place of FILE.")
@training_config_option
@output_option
@workspace_option
def reward_model(
    file: Path | None, run_id: str | None, config_file: Path, output: Path, root: Path
) -> None:
    """Train a reward model on preference pairs: prompt, chosen and rejected.

    The result scores answers: name its folder as `model` of a scorer of kind `reward_model`. Its
    accuracy on held-out pairs is printed with a 95 % interval.

    \b
    Examples:
      prefmill reward-model pairs.jsonl -c configs/reward-model.yaml -o my-reward-model
      prefmill reward-model --run latest -c configs/reward-model.yaml -o my-reward-model
    """
    from flows.single_training import (
        RewardFileConfig,
        exported_pairs,
        load_file_config,
        train_reward_model,
    )

    if (file is None) == (run_id is None):
        raise click.UsageError("name either FILE or --run")
    config, workspace = load_file_config(RewardFileConfig, config_file), workspace_at(root)
    pairs = file or exported_pairs(workspace, run_named(root, str(run_id)))
    click.echo(train_reward_model(pairs, config, workspace, output).model_path)
