"""Rows of JSONL, CSV and Parquet files, one after the other, and what becomes of broken ones."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import polars as pl

from stages.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FORMATS = (".jsonl", ".ndjson", ".csv", ".parquet")

ROWS_AT_ONCE = 50_000
"""Rows of Parquet files, queries and datasets that are in memory at a time."""


class Row(NamedTuple):
    """One row of a source."""

    number: int
    """Where it stands, from 1: its (first) line, or its row where there are no lines."""
    values: dict[str, Any]
    text: str | bytes | None = None
    """As it stands in the file; None where that is no text."""

    def exact(self, column: str) -> Any:
        """Return a value in full: of JSON, ``values`` holds integers beyond 64 bits as floats."""
        return (
            json.loads(self.text)[column] if isinstance(self.text, bytes) else self.values[column]
        )

    def as_text(self) -> str:
        """Return the row word for word, or as JSON."""
        if self.text is None:
            return json.dumps(self.values, default=str, ensure_ascii=False)
        return _decoded(self.text) if isinstance(self.text, bytes) else self.text


class BadRow(NamedTuple):
    """A row that was set aside."""

    source: str
    """The file or dataset."""
    number: int
    """Of its line or row, from 1."""
    reason: str
    text: str
    """The row word for word; bytes that are no UTF-8 as ``\\xff``."""


@dataclass
class BadRows:
    """What becomes of rows that cannot be used: the first is an error, or all are kept here."""

    source: str
    unit: str = "line"
    """What a row's number counts."""
    skip: bool = False
    rows: list[BadRow] = field(default_factory=list)

    @classmethod
    def of_file(cls, path: Path, *, skip: bool = False) -> BadRows:
        """Return an empty collection for the file at ``path``."""
        return cls(str(path), "row" if path.suffix.lower() == ".parquet" else "line", skip)

    def place(self, number: int) -> str:
        """Return how an error names a row."""
        return f"{self.source}, {self.unit} {number}"

    def refuse(self, error: DataError, number: int, text: str) -> None:
        """Set a row aside for the reason that ``error`` gives, or raise it."""
        if not self.skip:
            raise error
        self.rows.append(BadRow(self.source, number, error.found, text))


def require_file(path: Path, what: str, remedy: str) -> Path:
    """Return ``path``.

    Raises:
        MissingFileError: there is no such file.
    """
    if not path.is_file():
        raise MissingFileError(
            f"{what} file {str(path)!r} is not there",
            expected="a JSONL, Parquet or CSV file",
            where=f"working directory {Path.cwd()}",
            remedy=remedy,
        )
    return path


def read_rows(
    path: Path,
    bad: BadRows | None = None,
    choose: Callable[[pl.Schema], list[str]] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a JSONL, CSV or Parquet file; memory does not grow with the file.

    Args:
        path: the file; its extension names its format.
        bad: what becomes of broken rows; without it the first one is an error.
        choose: given the columns of a file that declares them (CSV, Parquet), checks them and
            returns those to read. The lines of a JSONL file declare none.

    Raises:
        MissingFileError: the file is not there.
        DataError: a row is broken (names line and column), the file as a whole cannot be read, or
            its format is unknown.
    """
    require_file(path, "rows", "correct its path in the configuration")
    suffix = path.suffix.lower()
    bad = bad or BadRows.of_file(path)
    if suffix not in FORMATS:
        raise DataError(
            f"cannot tell the format of {str(path)!r}", expected=f"one of {', '.join(FORMATS)}"
        )
    if suffix == ".parquet":
        yield from _parquet_rows(path, choose)
    elif suffix == ".csv":
        yield from _csv_rows(path, bad, choose)
    else:
        yield from _jsonl_rows(path, bad)


def frame_rows(frames: Iterable[pl.DataFrame]) -> Iterator[Row]:
    """Yield the rows of ``frames``, counted over all of them."""
    numbers = itertools.count(1)
    for frame in frames:
        for values in frame.iter_rows(named=True):
            yield Row(next(numbers), values)


def _jsonl_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            text = text.rstrip()  # else a cut line's error is in the next one
            if not text:
                continue
            try:
                values = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                bad.refuse(_broken_json(error, text, bad.place(number)), number, _decoded(text))
                continue
            if not isinstance(values, dict):
                found = f"a {type(values).__name__} instead of an object"
                bad.refuse(_bad_line(found, bad.place(number), 1), number, _decoded(text))
                continue
            yield Row(number, values, text)


def _broken_json(error: orjson.JSONDecodeError, text: bytes, place: str) -> DataError:
    try:
        text.decode()
    except UnicodeDecodeError as bad_byte:  # orjson doesn't say where
        column = len(text[: bad_byte.start].decode()) + 1
        return _bad_line(f"a byte that is no UTF-8: {bad_byte.reason}", place, column)
    return _bad_line(f"broken JSON: {error.msg}", place, error.colno)


def _bad_line(found: str, place: str, column: int) -> DataError:
    return DataError(
        found,
        expected="one JSON object a line, as UTF-8",
        where=f"{place}, column {column}",
        remedy="mend or delete that line, or set `skip_bad_rows` on a source of prompts",
    )


def _csv_rows(
    path: Path, bad: BadRows, choose: Callable[[pl.Schema], list[str]] | None
) -> Iterator[Row]:
    names: list[str] = []
    for record in _csv_records(path):
        problem = record.problem or _csv_problem(record, names)
        if problem:
            error = _bad_csv(problem, f"{bad.place(record.number)}{record.lines}")
            if not names:
                raise error
            text = record.text.encode(errors="surrogateescape")
            bad.refuse(error, record.number, _decoded(text))
        elif not names:
            names = record.fields
            if choose:
                choose(pl.Schema(dict.fromkeys(names, pl.String)))
        else:
            # CSV has no other way to say that a value is missing.
            values = {name: value or None for name, value in zip(names, record.fields, strict=True)}
            yield Row(record.number, values, record.text)


class _CsvRecord(NamedTuple):
    number: int
    """Its first line."""
    lines: str
    """Words for its other lines."""
    fields: list[str]
    text: str
    problem: str


def _csv_records(path: Path) -> Iterator[_CsvRecord]:
    """Yield the header and the rows as they stand; blank lines are passed over."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in file:
            taken.append(line)
            yield line

    csv.field_size_limit(sys.maxsize)  # by default a text of 128 KiB is an error
    # Bytes that are no UTF-8 become half surrogates, so that one bad row is not a bad file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(lines(), strict=True)  # else an open quote swallows the rest in silence
        while True:
            taken.clear()
            number, fields, problem = reader.line_num + 1, [], ""
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = f"broken CSV: {error}"
            if fields or problem:
                more = f" to {reader.line_num}" if reader.line_num > number else ""
                yield _CsvRecord(number, more, fields, "".join(taken).rstrip("\r\n"), problem)


def _csv_problem(record: _CsvRecord, names: list[str]) -> str:
    """Return what is wrong with a row, or with the header while there are no ``names``."""
    fields = record.fields
    try:
        record.text.encode()
    except UnicodeEncodeError as error:
        return f"a byte that is no UTF-8, at character {error.start + 1}"
    if names and len(fields) != len(names):
        return f"{len(fields)} fields under a header of {len(names)}"
    twice = [] if names else sorted({name for name in fields if fields.count(name) > 1})
    return f"columns {twice} are named twice" if twice else ""


def _bad_csv(found: str, place: str) -> DataError:
    return DataError(
        found,
        expected="CSV as UTF-8: as many fields as the header, quotes in a quoted field doubled",
        where=place,
        remedy="mend or delete that row, or set `skip_bad_rows` on a source of prompts",
    )


def _parquet_rows(path: Path, choose: Callable[[pl.Schema], list[str]] | None) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            names = choose(pl.Schema(pl.read_parquet_schema(file))) if choose else None
        yield from frame_rows(_parquet_frames(path, names))
    except (OSError, ValueError, NotImplementedError, pl.exceptions.PolarsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {str(path)!r}: {error}", where=str(path)) from None


def _parquet_frames(path: Path, names: list[str] | None) -> Iterator[pl.DataFrame]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


def _decoded(text: bytes) -> str:
    return text.decode(errors="backslashreplace")
