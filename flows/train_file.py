"""Training on a preference file from anywhere: no run, no evaluation, no gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.file_training import FileTraining, train_recorded
from flows.models import find_policy
from flows.progress import note, say
from stages.content_ids import canonical_json, content_ids
from stages.errors import ConfigError, DataError, MissingFileError
from stages.row_files import read_rows as rows_of_file

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from lineage.workspace import Workspace
    from stages.row_files import Row
    from trainer.model_folder import TrainingResult

TEXTS = ("prompt", "chosen", "rejected")

ANSWERS = ("prompt", "completion", "label")

STEPS_SO_FAR = "initial_reason_steps"

CONVERSATIONS = {*TEXTS, "completion", "messages", "prefix", STEPS_SO_FAR}
"""Columns that hold texts or messages."""

TEXT, MESSAGES = "a text", "a list of messages"

TURN = ("role", "content")

LINES = (".jsonl", ".ndjson")


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
    from trainer.model_folder import manifest_in, noteworthy

    folders = policy.folder, policy.folder, config.training, output, workspace.checkpoints
    result = train_recorded(
        workspace,
        FileTraining("train-file", path, policy, config, config.training, output),
        lambda advance: train_dpo(rows, *folders, advance, note=note),
    )
    unit = "answers" if config.training.loss_type == "kto" else "pairs"
    manifest = manifest_in(result.model_path)
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
    import polars as pl
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
    # What is no number becomes null, which whoever reads the column refuses.
    numbers = cs.by_name("confidence", "length_weight", "margin", require_all=False)
    return rows.select(
        pl.col("pair_id").cast(pl.String), *texts, numbers.cast(pl.Float64, strict=False)
    )


def answer_rows(path: Path) -> pl.DataFrame:
    """Return a file of single answers, or of pairs, as KTO takes it.

    `prompt` is a text or a list of messages, `completion` a text or a list of one message, `label`
    true or false. Of pairs, chosen answers are good and rejected ones bad. `answer_id` is made from
    the rest where the file has none.

    Raises:
        MissingFileError: the file is not there.
        DataError: it can't be read, or has other columns or other shapes.
    """
    import polars as pl

    from trainer.rows import answers_of_pairs
    from trainer.unpaired_checks import require_boolean_labels

    rows = read_rows(path)
    if "completion" not in rows.columns and set(TEXTS) <= set(rows.columns):
        return answers_of_pairs(preference_rows(path))
    _require_columns(rows, ANSWERS, path)
    require_boolean_labels(rows, str(path))
    rows = rows.with_columns(
        prompt_messages(rows["prompt"], path), answer_texts(rows["completion"], path)
    )
    if "answer_id" not in rows.columns:
        rows = rows.with_columns(_content_ids(rows, "answer", ANSWERS))
    return rows.select(pl.col("answer_id").cast(pl.String), *ANSWERS)


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
        DataError: it can't be read, or a column of texts holds something else (names the line).
    """
    import polars as pl

    from stages.part_files import read_parts

    if not path.is_file():
        raise MissingFileError(
            f"the file {str(path)!r} is not there", expected="a .jsonl or .parquet file"
        )
    if path.suffix in LINES:
        return _read_lines(path)
    try:
        return read_parts(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"the file cannot be read: {error}", expected=".jsonl or .parquet", where=str(path)
        ) from None


def _read_lines(path: Path) -> pl.DataFrame:
    """Return a JSON Lines file with every column that any of its lines has.

    Polars' own reader leaves out a column that the first hundred lines lack, and where one line has
    a text and another a conversation, it makes the conversation a text: its JSON.
    """
    import polars as pl

    lines = list(rows_of_file(path))
    if not lines:
        raise DataError("the file has no rows", expected="one at least", where=str(path))
    names = dict.fromkeys(name for line in lines for name in line.values)
    return pl.DataFrame([_column(lines, name, path) for name in names])


def _column(lines: list[Row], name: str, path: Path) -> pl.Series:
    import polars as pl

    values = [line.values.get(name) for line in lines]
    if name not in CONVERSATIONS:
        return pl.Series(name, values, strict=False)
    first: dict[str, int] = {}
    for line, value in zip(lines, values, strict=True):
        if value is not None:
            first.setdefault(_kind(value), line.number)
    if len(first) > 1 or not first.keys() <= {TEXT, MESSAGES}:
        raise DataError(
            f"`{name}` holds " + ", and ".join(f"{kind} in line {n}" for kind, n in first.items()),
            expected=f"{TEXT}, or {MESSAGES} with role and content, the same in every line",
            where=str(path),
        )
    if MESSAGES not in first:
        return pl.Series(name, values, pl.String)
    # Other keys, such as tool calls, may be of any shape.
    turns = [value and [{key: turn.get(key) for key in TURN} for turn in value] for value in values]
    return pl.Series(name, turns, pl.List(pl.Struct(dict.fromkeys(TURN, pl.String))))


def _kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if isinstance(value, str):
        return TEXT
    if not isinstance(value, list):
        return f"a value of type {type(value).__name__}"
    for turn in value:
        parts = [turn.get(key) for key in TURN] if isinstance(turn, dict) else [turn]
        if not all(part is None or isinstance(part, str) for part in parts):
            return "a list that is none of messages whose role and content are texts"
    return MESSAGES


def prompt_messages(prompt: pl.Series, path: Path) -> pl.Series:
    """Return ``prompt``, texts or conversations, as conversations of role and content.

    Raises:
        DataError: it holds neither.
    """
    import polars as pl

    if prompt.dtype == pl.String:
        turn = pl.struct(role=pl.lit("user"), content=pl.col(prompt.name))
        asked = pl.when(pl.col(prompt.name).is_not_null()).then(pl.concat_list(turn))
        return prompt.to_frame().select(asked.alias(prompt.name)).to_series()
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
