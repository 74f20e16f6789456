"""`prefmill sft` and `prefmill reward-model`: a training on a file, with a small configuration.

These models come before a run or judge in it, and no run makes them. So their settings are no part
of a pipeline's configuration, and no run's id depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from flows.configuration import read_yaml
from flows.file_training import FileTraining, train_recorded
from flows.models import find_policy
from flows.progress import note, say
from flows.run_outputs import read_output
from flows.train_file import answer_texts, preference_rows, prompt_messages, read_rows
from stages.configuration import Config
from stages.errors import DataError
from trainer.reward_training_settings import RewardTrainingConfig
from trainer.sft_settings import SFTTrainingConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl

    from lineage.workspace import Workspace
    from trainer.single_model import Objective, TrainedModel


class SFTFileConfig(Config):
    """The configuration of `prefmill sft`."""

    policy: str = "bundled"
    """The model to train: a folder, a hub id, or `bundled`."""
    sft: SFTTrainingConfig = SFTTrainingConfig()
    """How it is trained."""


class RewardFileConfig(Config):
    """The configuration of `prefmill reward-model`."""

    policy: str = "bundled"
    """What it starts from: a language model, which gets a fresh head, or a sequence classifier with
    one output; a folder, a hub id, or `bundled`."""
    reward_model: RewardTrainingConfig = RewardTrainingConfig()
    """How it is trained."""


FileConfig = TypeVar("FileConfig", bound=Config)


def load_file_config(kind: type[FileConfig], path: Path) -> FileConfig:
    """Return the configuration in a YAML file.

    Raises:
        MissingFileError: the file is not there.
        ConfigError: it is not YAML, or a key or value is wrong (names the nearest known key).
    """
    return kind.checked(read_yaml(path), str(path))


def train_sft(
    path: Path, config: SFTFileConfig, workspace: Workspace, output: Path
) -> TrainedModel:
    """Return the policy trained on the answers of a file, saved in ``output``.

    Raises:
        PrefmillError: see `sft_rows` and `trainer.single_model.train_model`.
    """
    from trainer.sft import SFTObjective

    rows, base = sft_rows(path, config.sft.turns), find_policy(config.policy)
    asked = FileTraining("sft", path, base, config, config.sft, output)
    return _train(SFTObjective(config.sft), rows, workspace, asked)


def train_reward_model(
    path: Path, config: RewardFileConfig, workspace: Workspace, output: Path
) -> TrainedModel:
    """Return a reward model trained on the pairs of a file, saved in ``output``.

    Raises:
        PrefmillError: see `preference_rows` and `trainer.single_model.train_model`.
    """
    from trainer.reward_training import RewardObjective

    rows, base = preference_rows(path), find_policy(config.policy)
    asked = FileTraining("reward-model", path, base, config, config.reward_model, output)
    return _train(RewardObjective(config.reward_model), rows, workspace, asked)


def _train(
    objective: Objective, rows: pl.DataFrame, workspace: Workspace, asked: FileTraining
) -> TrainedModel:
    from trainer.single_model import notes_of, train_model

    folders = asked.base.folder, asked.output, workspace.checkpoints
    result = train_recorded(
        workspace,
        asked,
        lambda advance: train_model(objective, rows, *folders, progress=advance, note=note),
    )
    manifest = result.manifest
    said = notes_of(manifest)
    said.append(f"{manifest['rows']:,} {objective.rows_are}, {manifest['steps']:,} steps")
    said += [
        f"held out, {when}: {', '.join(_measures(metrics))}"
        for when, metrics in sorted(manifest["heldout"].items(), reverse=True)
    ]
    for sentence in said:
        say(f"{'':<24} {sentence}")
    return result


def _measures(metrics: dict[str, float]) -> Iterator[str]:
    """Yield each metric with its value, and the ends of its interval where it has one."""
    for name, value in metrics.items():
        if f"{name}_low" in metrics:
            ends = f"{metrics[f'{name}_low']:.3f} to {metrics[f'{name}_high']:.3f}"
            yield f"{name} {value:.3f} ({ends})"
        elif not name.endswith(("_low", "_high")):
            yield f"{name} {value:.3f}"


def exported_pairs(workspace: Workspace, run_id: str) -> Path:
    """Return the file of train pairs that a run exported.

    Raises:
        DataError: there is none.
    """
    from flows.training_round import training_export  # imports Prefect

    exports = read_output(workspace, run_id, "export", "exports")
    return workspace.root / training_export(exports)["path"]


def sft_rows(path: Path, turns: str) -> pl.DataFrame:
    """Return row_id, prompt, response of a JSON Lines or Parquet file (see `trainer.sft_data`).

    The file has `messages`, or `prompt` with `completion` or `chosen`. Of `messages` the prompt is
    what comes before the first answer, or the last one (``turns``). `row_id` is the line where the
    file has no such column.

    Raises:
        MissingFileError: the file is not there.
        DataError: it can't be read, or has other columns or other shapes.
    """
    import polars as pl

    rows = read_rows(path)
    answer = next((name for name in ("completion", "chosen") if name in rows.columns), None)
    if "messages" in rows.columns:
        parts = _parted(prompt_messages(rows["messages"], path), turns)
    elif "prompt" in rows.columns and answer:
        turn = pl.struct(role=pl.lit("assistant"), content=pl.col(answer))
        texts = answer_texts(rows[answer], path).to_frame()
        response = texts.select(pl.concat_list(turn)).to_series()
        parts = pl.DataFrame(
            {"prompt": prompt_messages(rows["prompt"], path), "response": response}
        )
    else:
        raise DataError(
            "the file has neither conversations nor answers to prompts",
            expected="the column messages, or prompt with completion or chosen",
            where=f"{path}, with the columns {rows.columns}",
        )
    if "row_id" in rows.columns:
        return parts.select(rows["row_id"].cast(pl.String), "prompt", "response")
    number = pl.int_range(1, pl.len() + 1).cast(pl.String).str.zfill(len(str(rows.height)))
    return parts.select(pl.concat_str(pl.lit("line "), number).alias("row_id"), pl.all())


def _parted(messages: pl.Series, turns: str) -> pl.DataFrame:
    """Return prompt and response of conversations; those without an answer have no response."""
    import polars as pl

    answers = pl.col("messages").list.eval(pl.element().struct.field("role") == "assistant")
    places = answers.list.eval(pl.element().arg_true())
    first = places.list.get(0 if turns == "all" else -1, null_on_oob=True)
    length = pl.col("messages").list.len()
    first = first.fill_null(length)
    return (
        messages.alias("messages")
        .to_frame()
        .select(
            prompt=pl.col("messages").list.head(first),
            response=pl.col("messages").list.slice(first),
        )
    )
