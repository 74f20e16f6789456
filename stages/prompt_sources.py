"""Where prompts come from: every kind of source, its configuration and how its rows are read."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
import pydantic

from stages import duckdb_rows
from stages.configuration import NOT_EMPTY, Config
from stages.content_ids import canonical_json, file_sha256
from stages.errors import ConfigError, DataError
from stages.prompt_records import (
    USABLE,
    PromptRecord,
    conversation_of,
    one_user_turn,
    prompt_frame,
    truth_text,
)
from stages.row_files import ROWS_AT_ONCE, BadRows, frame_rows, read_rows, require_file
from stages.task_families import FAMILIES, sample_prompts

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from stages.row_files import BadRow, Row


class PromptSource(Config):
    """What every source has."""

    kind: str
    """Where the prompts come from."""
    name: str
    """The source's name in the tables."""
    weight: pydantic.PositiveFloat = 1.0
    """Its share of `prompts.maximum_prompts`, against the other sources' weights."""


class BundledSource(PromptSource):
    """Prompts of the bundled verifiable task families, generated; content-disjoint splits."""

    kind: Literal["bundled"] = "bundled"
    name: str = "bundled"
    families: tuple[str, ...] = FAMILIES
    """Which task families, in equal shares."""
    train: pydantic.NonNegativeInt = 400
    """Prompts for preference pairs."""
    heldout: pydantic.NonNegativeInt = 500
    """Prompts for evaluation; their content is never trained on."""
    skip: pydantic.NonNegativeInt = 0
    """Train prompts to pass over: later rounds of a series take fresh ones."""


class SampledSource(PromptSource):
    """A source that is sampled from and split by prefmill."""

    maximum_rows: pydantic.PositiveInt | None = None
    """Sample this many of its prompts; everything without it."""
    heldout_share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    """Share of prompts, chosen by a hash of their content, kept for evaluation; 1: all."""


class Message(Config):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""


class ListSource(SampledSource):
    """Prompts written in the configuration itself."""

    kind: Literal["list"] = "list"
    name: str = "list"
    prompts: Annotated[tuple[str | tuple[Message, ...], ...], NOT_EMPTY]
    """Texts, or lists of {role, content} whose last turn is the user's."""


class ColumnsSource(SampledSource):
    """A source of rows: which column holds what."""

    prompt_column: str = "prompt"
    """Text, or a list of {role, content}; `messages` is used when this column is absent."""
    system_column: str | None = None
    """The column of a text that is put before the conversation as its system turn."""
    stratum_column: str | None = None
    """The column whose values sampling balances; all rows are one stratum without it."""
    strata: Literal["equal", "proportional"] = "equal"
    """Of a sample each stratum has the same share as far as it lasts, or a share by its size."""
    verifier_column: str | None = None
    """The column that names a rule verifier."""
    ground_truth_column: str | None = None
    """The column that the verifier checks against."""
    reference_column: str | None = None
    """The column of a text that is known as a good answer."""
    skip_bad_rows: bool = False
    """Set rows that cannot be used aside in a file, counted; without it the first is an error."""

    @property
    def columns(self) -> list[str]:
        """The columns named, but the prompt's."""
        named = (
            self.system_column,
            self.stratum_column,
            self.verifier_column,
            self.ground_truth_column,
            self.reference_column,
        )
        return list(dict.fromkeys(name for name in named if name is not None))


class FileSource(ColumnsSource):
    """Prompts from a local file: JSONL, Parquet or CSV, by its extension."""

    kind: Literal["file"] = "file"
    path: Path
    """The file; relative paths start at the working directory."""


class DatasetSource(ColumnsSource):
    """Prompts from a Hugging Face dataset: a hub id or a local folder."""

    kind: Literal["dataset"] = "dataset"
    path: str
    """What `datasets.load_dataset` takes: a hub id or a local folder."""
    subset: str | None = None
    """The dataset's configuration name."""
    split: str = "train"
    """The dataset's split to read."""
    revision: str | None = None
    """Commit of a hub dataset; pin it, or a changed dataset is taken for the same."""


class QuerySource(ColumnsSource):
    """Prompts that a DuckDB query finds in files or in a DuckDB database."""

    kind: Literal["query"] = "query"
    sql: str
    """One SELECT; it must find the same rows each time: no `random()`, no `now()`."""
    database: Path | None = None
    """A DuckDB file whose tables the query reads, opened read-only; else it reads files."""


Source = Annotated[
    BundledSource | FileSource | DatasetSource | QuerySource | ListSource,
    pydantic.Field(discriminator="kind"),
]


def fingerprint(source: PromptSource) -> str:
    """Return what identifies the source's content beyond its configuration.

    Raises:
        MissingFileError: the source names a file that is not there.
        DataError: its query cannot be run.
    """
    if isinstance(source, FileSource):
        return file_sha256(_required(source.path))
    if isinstance(source, QuerySource):
        return duckdb_rows.result_fingerprint(source.sql, source.database)
    if isinstance(source, DatasetSource) and Path(source.path).is_dir():
        files = sorted(path for path in Path(source.path).rglob("*") if path.is_file())
        named = [f"{path.relative_to(source.path)}:{file_sha256(path)}" for path in files]
        return hashlib.sha256("\n".join(named).encode()).hexdigest()
    return ""


def _required(path: Path) -> Path:
    return require_file(path, "prompts", "correct `path` in the configuration's prompt source")


def read_source(source: PromptSource, seed: int) -> tuple[pl.DataFrame, list[BadRow]]:
    """Return all of a source's prompts as rows of the `prompts` table, and what was set aside.

    The split is null where it is not the source's own.

    Raises:
        MissingFileError: the source's file is not there.
        ConfigError: a bundled family is unknown or has fewer prompts than asked for.
        DataError: the source cannot be read, lacks a column, or a row cannot be used.
    """
    if isinstance(source, BundledSource):
        return prompt_frame(_bundled(source, seed)), []
    if isinstance(source, ListSource):
        return prompt_frame(_listed(source)), []
    assert isinstance(source, ColumnsSource)
    frames = [prompt_frame([])]
    with contextlib.ExitStack() as stack:  # an error keeps its frames, and so a connection open
        rows, bad = _rows(source, stack)
        records = _records(rows, source, bad)
        while batch := list(itertools.islice(records, ROWS_AT_ONCE)):
            frames.append(prompt_frame(batch))
    return pl.concat(frames), bad.rows


def _bundled(source: BundledSource, seed: int) -> Iterator[PromptRecord]:
    """Yield the bundled families' prompts in equal shares; the remainder goes to the first."""
    for position, family in enumerate(source.families):
        for split, total, skip in (
            ("train", source.train, source.skip),
            ("heldout", source.heldout, 0),
        ):
            first, last = (
                _share(count, position, len(source.families)) for count in (skip, skip + total)
            )
            # Held-out prompts are the same for every `skip`: rounds of a series compare on them.
            try:
                drawn = sample_prompts(family, split, last, seed)[first:]  # type: ignore[arg-type]
            except ValueError as error:
                raise ConfigError(str(error), where=f"prompt source {source.name!r}") from None
            for task in drawn:
                yield PromptRecord(
                    conversation=one_user_turn(task.prompt),
                    source=source.name,
                    stratum=family,
                    split=split,
                    verifier=family,
                    ground_truth=canonical_json(task.ground_truth),
                )


def _share(count: int, position: int, parts: int) -> int:
    return count // parts + (position < count % parts)


def _listed(source: ListSource) -> Iterator[PromptRecord]:
    for number, prompt in enumerate(source.prompts, start=1):
        value = prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
        conversation = conversation_of(value, None)
        if conversation is None:
            raise ConfigError(
                f"no usable prompt: {str(value)[:80]!r}",
                expected=USABLE,
                where=f"prompt source {source.name!r}, `prompts`, number {number}",
            )
        yield PromptRecord(conversation, source.name, "all")


def _rows(source: ColumnsSource, stack: contextlib.ExitStack) -> tuple[Iterator[Row], BadRows]:
    """Return the rows of a source, and the collection of those that cannot be used.

    What is open while rows are read is closed by ``stack``.
    """
    skip = source.skip_bad_rows
    if isinstance(source, FileSource):
        bad = BadRows.of_file(_required(source.path), skip=skip)
        return read_rows(source.path, bad, lambda schema: _chosen(schema, source, bad)), bad
    if isinstance(source, QuerySource):
        bad = BadRows(f"query of prompt source {source.name!r}", "row", skip)
        found = duckdb_rows.result_frames(source.sql, source.database)
    else:
        assert isinstance(source, DatasetSource)
        bad = BadRows(f"dataset {source.path}", "row", skip)
        found = _dataset_frames(source)
    frames: Iterator[pl.DataFrame] = stack.enter_context(contextlib.closing(found))
    first = next(frames)  # there is one, if only an empty one: it tells the columns
    columns = _chosen(first.schema, source, bad)
    frames = itertools.chain([first], frames)
    return frame_rows(frame.select(columns) for frame in frames), bad


def _dataset_frames(source: DatasetSource) -> Generator[pl.DataFrame]:
    import datasets

    try:
        loaded = datasets.load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision
        )
    except Exception as error:  # noqa: BLE001 - whatever a format's reader raises
        cause = error.__cause__ or error
        raise DataError(
            f"dataset {source.path!r} cannot be loaded: {str(cause) or type(cause).__name__}",
            expected="a local folder or a hub id that datasets.load_dataset takes",
            remedy="check path, subset, split, revision and that its files have rows; a hub id "
            "needs network access",
        ) from None
    wanted = [source.prompt_column, "messages", *source.columns]
    used = loaded.select_columns([name for name in loaded.column_names if name in wanted])
    empty = pl.DataFrame(pl.from_arrow(used.features.arrow_schema.empty_table()))
    # Not all columns: one of a type of its own (an image) may have none in Polars.
    yield pl.DataFrame(schema={**dict.fromkeys(loaded.column_names, pl.Null), **empty.schema})
    for table in used.with_format("arrow").iter(ROWS_AT_ONCE):
        yield pl.DataFrame(pl.from_arrow(table))


def _chosen(schema: pl.Schema, source: ColumnsSource, bad: BadRows) -> list[str]:
    """Return the columns to read of those there.

    Raises:
        DataError: columns are missing (lists them, then what is there), or the prompt's type is
            neither text nor a conversation.
    """
    prompt = source.prompt_column
    if prompt not in schema and "messages" in schema:
        prompt = "messages"
    wanted = list(dict.fromkeys([prompt, *source.columns]))
    _require_columns([name for name in wanted if name not in schema], list(schema), bad.source)
    kind = schema[prompt]
    turns = kind.inner if isinstance(kind, pl.List) else None
    named = {field.name for field in turns.fields} if isinstance(turns, pl.Struct) else set()
    if not (kind in (pl.String, pl.Null, pl.Categorical) or {"role", "content"} <= named):
        raise DataError(
            f"column {prompt!r} is of type {kind}",
            expected="text, or a list of {role, content}",
            where=bad.source,
            remedy="set `prompt_column`, or write the column anew with another type",
        )
    return wanted


def _require_columns(missing: list[str], there: list[str], where: str) -> None:
    if missing:
        raise DataError(
            f"missing columns {missing}",
            expected="the columns that the prompt source names",
            where=f"{where}; columns there: {', '.join(there)}",
            remedy="correct the source's `..._column` keys",
        )


def _records(rows: Iterator[Row], source: ColumnsSource, bad: BadRows) -> Iterator[PromptRecord]:
    """Yield the usable rows; a column that no row has is an error at the end."""
    missing, there = source.columns, dict[str, None]()
    for row in rows:
        if missing:
            missing = [name for name in missing if name not in row.values]
            there |= dict.fromkeys(row.values)
        try:
            yield _record(row, source)
        except DataError as error:
            columns = f"{bad.place(row.number)}; columns there: {', '.join(row.values)}"
            refused = DataError(
                error.found, expected=error.expected, where=columns, remedy=error.remedy
            )
            bad.refuse(refused, row.number, row.as_text())
    if there:
        _require_columns(missing, list(there), bad.source)


def _record(row: Row, source: ColumnsSource) -> PromptRecord:
    """Return the record of one row.

    Raises:
        DataError: a value cannot be used; it doesn't say in which row.
    """
    values = row.values
    prompt = values.get(source.prompt_column, values.get("messages"))
    conversation = conversation_of(prompt, _text_in(values, source.system_column))
    if conversation is None:
        raise DataError(
            f"no usable prompt in column {source.prompt_column!r}: found {str(prompt)[:80]!r}",
            expected=f"{USABLE}; a system text only where it has no system turn",
            remedy="set `prompt_column`, mend that row, or set `skip_bad_rows`",
        )
    stratum = values.get(source.stratum_column) if source.stratum_column else "all"
    verifier = values.get(source.verifier_column) if source.verifier_column else None
    return PromptRecord(
        conversation=conversation,
        source=source.name,
        stratum="none" if stratum is None else str(stratum),
        verifier=None if verifier is None else str(verifier),
        ground_truth=truth_text(row, source.ground_truth_column),
        reference=_text_in(values, source.reference_column),
    )


def _text_in(values: dict[str, Any], column: str | None) -> str | None:
    value = values.get(column) if column else None
    if value is None or isinstance(value, str):
        return value or None
    raise DataError(f"no text in column {column!r}: found {str(value)[:80]!r}", expected="text")
