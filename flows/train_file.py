"""Training on a preference file from anywhere: no run, no evaluation, no gate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flows.file_training import FileTraining, train_recorded
from flows.models import find_policy
from flows.progress import note, say
from stages.content_ids import canonical_json, content_ids
from stages.errors import ConfigError, DataError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from lineage.workspace import Workspace
    from trainer.model_folder import TrainingResult

TEXTS = ("prompt", "chosen", "rejected")

ANSWERS = ("prompt", "completion", "label")

STEPS_SO_FAR = "initial_reason_steps"


def train_file(
    path: Path, config: PipelineConfig, workspace: Workspace, output: Path
) -> TrainingResult:
    """Return the policy of ``config`` trained on the rows of a file, saved in ``output``.

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
    rows = answer_rows(path) if config.training.loss_type == "kto" else preference_rows(path)
    policy = find_policy(config.policy)
    from trainer.dpo import train_dpo
    from trainer.model_folder import MANIFEST, noteworthy

    folders = policy.folder, policy.folder, config.training, output, workspace.checkpoints
    result = train_recorded(
        workspace,
        FileTraining("train-file", path, policy, config, config.training, output),
        lambda advance: train_dpo(rows, *folders, advance, note=note),
    )
    unit = "answers" if config.training.loss_type == "kto" else "pairs"
    manifest = json.loads((result.model_path / MANIFEST).read_text(encoding="utf-8"))
    for sentence in (f"{result.pairs:,} {unit}, {result.steps:,} steps", *noteworthy(manifest)):
        say(f"{'':<24} {sentence}")
    return result


def preference_rows(path: Path) -> pl.DataFrame:
    """Return a JSON Lines or Parquet file as the trainer takes it.

    `prompt` is a text or a list of messages, `chosen` and `rejected` a text or a list of one
    message. `pair_id` is made from them where the file has none; `confidence`, `length_weight`,
    `margin` and `prefix` are kept, the last also under Math-Step-DPO-10K's name,
    `initial_reason_steps`.

    Raises:
        MissingFileError: the file is not there.
        DataError: it can't be read, or has other columns or other shapes.
    """
    import polars.selectors as cs

    rows = read_rows(path)
    _require_columns(rows, TEXTS, path)
    if "prefix" not in rows.columns:
        rows = rows.rename({STEPS_SO_FAR: "prefix"}, strict=False)
    texts = (*TEXTS, "prefix") if "prefix" in rows.columns else TEXTS
    rows = rows.with_columns(
        prompt_messages(rows["prompt"], path),
        *(answer_texts(rows[name], path) for name in texts[1:]),
    )
    if "pair_id" not in rows.columns:
        rows = rows.with_columns(_content_ids(rows, "pair", texts))
    optional = cs.by_name("confidence", "length_weight", "margin", require_all=False)
    return rows.select("pair_id", *texts, optional)


def answer_rows(path: Path) -> pl.DataFrame:
    """Return a file of single answers, or of pairs, as KTO takes it.

    `prompt` is a text or a list of messages, `completion` a text or a list of one message, `label`
    true or false. Of pairs, chosen answers are good and rejected ones bad. `answer_id` is made from
    the rest where the file has none.

    Raises:
        MissingFileError: the file is not there.
        DataError: it can't be read, or has other columns or other shapes.
    """
    from trainer.rows import answers_of_pairs

    rows = read_rows(path)
    if "completion" not in rows.columns and set(TEXTS) <= set(rows.columns):
        return answers_of_pairs(preference_rows(path))
    _require_columns(rows, ANSWERS, path)
    rows = rows.with_columns(
        prompt_messages(rows["prompt"], path), answer_texts(rows["completion"], path)
    )
    if "answer_id" not in rows.columns:
        rows = rows.with_columns(_content_ids(rows, "answer", ANSWERS))
    return rows.select("answer_id", *ANSWERS)


def _require_columns(rows: pl.DataFrame, columns: tuple[str, ...], path: Path) -> None:
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        labelled = columns == TEXTS and set(ANSWERS) <= set(rows.columns)
        raise DataError(
            f"the file lacks the columns {missing}",
            expected=f"the columns {list(columns)}",
            where=f"{path}, with the columns {rows.columns}",
            remedy="train on labelled answers by `loss_type: kto`" if labelled else "",
        )


def _content_ids(rows: pl.DataFrame, kind: str, columns: tuple[str, ...]) -> pl.Series:
    import polars as pl

    texts = rows.with_columns(prompt=pl.Series(map(canonical_json, rows["prompt"].to_list())))
    return content_ids(texts, kind, columns)


def read_rows(path: Path) -> pl.DataFrame:
    """Return a JSON Lines or Parquet file as it is.

    Raises:
        MissingFileError: the file is not there.
        DataError: it can't be read.
    """
    import polars as pl

    if not path.is_file():
        raise MissingFileError(
            f"the file {str(path)!r} is not there", expected="a .jsonl or .parquet file"
        )
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"the file cannot be read: {error}", expected=".jsonl or .parquet", where=str(path)
        ) from None


def prompt_messages(prompt: pl.Series, path: Path) -> pl.Series:
    """Return ``prompt``, texts or conversations, as conversations of role and content.

    Raises:
        DataError: it holds neither.
    """
    import polars as pl

    if prompt.dtype == pl.String:
        turn = pl.struct(role=pl.lit("user"), content=pl.col(prompt.name))
        return prompt.to_frame().select(pl.concat_list(turn).alias(prompt.name)).to_series()
    _require_messages(prompt, path)
    turn = pl.struct(pl.element().struct.field("role"), pl.element().struct.field("content"))
    return prompt.to_frame().select(pl.col(prompt.name).list.eval(turn)).to_series()


def answer_texts(answer: pl.Series, path: Path) -> pl.Series:
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
