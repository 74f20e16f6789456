"""Training on a preference file from anywhere: no run, no evaluation, no gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.models import find_policy
from flows.progress import note, say, stage_progress
from stages.content_ids import canonical_json, content_ids
from stages.errors import ConfigError, DataError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from lineage.workspace import Workspace
    from trainer.model_folder import TrainingResult

TEXTS = ("prompt", "chosen", "rejected")


def train_file(
    path: Path, config: PipelineConfig, workspace: Workspace, output: Path
) -> TrainingResult:
    """Return the policy of ``config`` trained on the pairs of a file, saved in ``output``.

    Killed and called again it goes on from its last checkpoint, which lies in the workspace.

    Raises:
        ConfigError: the label smoothing is the estimate of a run.
        PrefmillError: see `preference_rows` and `trainer.dpo.train_dpo`.
    """
    if config.training.label_smoothing == "estimated":
        raise ConfigError(
            "`label_smoothing: estimated` asks for a run's estimate, and a file has none",
            expected="a number",
            where="training.label_smoothing",
        )
    rows = preference_rows(path)
    policy = find_policy(config.policy).folder
    from trainer.dpo import train_dpo

    checkpoints = workspace.checkpoints
    with stage_progress("train") as advance:
        result = train_dpo(
            rows, policy, policy, config.training, output, checkpoints, advance, note=note
        )
    say(f"{'':<24} {result.pairs:,} pairs, {result.steps:,} steps")
    return result


def preference_rows(path: Path) -> pl.DataFrame:
    """Return a JSON Lines or Parquet file as the trainer takes it.

    `prompt` is a text or a list of messages, `chosen` and `rejected` a text or a list of one
    message. `pair_id` is made from them where the file has none; `confidence` is kept.

    Raises:
        MissingFileError: the file is not there.
        DataError: it can't be read, or has other columns or other shapes.
    """
    import polars as pl
    import polars.selectors as cs

    if not path.is_file():
        raise MissingFileError(
            f"the file {str(path)!r} is not there", expected="a .jsonl or .parquet file"
        )
    try:
        rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"the file cannot be read: {error}", expected=".jsonl or .parquet", where=str(path)
        ) from None
    missing = [name for name in TEXTS if name not in rows.columns]
    if missing:
        raise DataError(
            f"the file lacks the columns {missing}",
            expected=f"the columns {list(TEXTS)}",
            where=f"{path}, with the columns {rows.columns}",
        )
    rows = rows.with_columns(
        _messages(rows["prompt"], path), *(_answer(rows[name], path) for name in TEXTS[1:])
    )
    if "pair_id" not in rows.columns:
        texts = rows.with_columns(prompt=pl.Series(map(canonical_json, rows["prompt"].to_list())))
        rows = rows.with_columns(content_ids(texts, "pair", TEXTS))
    optional = cs.by_name("confidence", require_all=False)
    return rows.select("pair_id", *TEXTS, optional)


def _messages(prompt: pl.Series, path: Path) -> pl.Series:
    import polars as pl

    if prompt.dtype == pl.String:
        turn = pl.struct(role=pl.lit("user"), content=pl.col("prompt"))
        return prompt.to_frame().select(pl.concat_list(turn).alias("prompt")).to_series()
    _require_messages(prompt, path)
    turn = pl.struct(pl.element().struct.field("role"), pl.element().struct.field("content"))
    return prompt.to_frame().select(pl.col("prompt").list.eval(turn)).to_series()


def _answer(answer: pl.Series, path: Path) -> pl.Series:
    """Return the texts of ``answer``.

    Raises:
        DataError: some are neither a text nor one message.
    """
    import polars as pl

    if answer.dtype == pl.String:
        return answer
    _require_messages(answer, path)
    several = int((answer.list.len() != 1).sum())
    if several:
        raise DataError(
            f"{several} of {len(answer)} values of `{answer.name}` are not one message",
            expected="the answer alone: what comes before it belongs in `prompt`",
            where=str(path),
        )
    text = pl.col(answer.name).list.first().struct.field("content").alias(answer.name)
    return answer.to_frame().select(text).to_series()


def _require_messages(values: pl.Series, path: Path) -> None:
    import polars as pl

    turns = values.dtype.inner if isinstance(values.dtype, pl.List) else None
    fields = {field.name for field in turns.fields} if isinstance(turns, pl.Struct) else set()
    if not {"role", "content"} <= fields:
        raise DataError(
            f"`{values.name}` holds {values.dtype}",
            expected="a text, or a list of messages with role and content",
            where=str(path),
        )
