"""Rows that a SELECT of DuckDB finds in files or in a database, which it cannot change."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import polars as pl

from stages.errors import DataError, MissingFileError
from stages.reading_sql import more_than_reading
from stages.row_files import ROWS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    import duckdb

VIEW = "prefmill_prompts"


def result_frames(sql: str, database: Path | None) -> Generator[pl.DataFrame]:
    """Yield what one SELECT finds, in frames of bounded size; the first may be empty.

    Raises:
        MissingFileError: the database is not there.
        DataError: ``sql`` is broken, not one SELECT, or reads what cannot be read.
    """
    with _opened(sql, database) as found:
        yield pl.DataFrame(pl.from_arrow(found.limit(0).to_arrow_table()))
        for batch in found.to_arrow_reader(ROWS_AT_ONCE):
            yield pl.DataFrame(pl.from_arrow(batch))


def result_fingerprint(sql: str, database: Path | None) -> str:
    """Return a hash of the rows that one SELECT finds; their order has no say.

    Raises: as ``result_frames``.
    """
    with _opened(sql, database) as found:
        hashed = found.query(
            "found",
            "SELECT coalesce(sha256(string_agg(row_hash, '' ORDER BY row_hash)), '') "
            "FROM (SELECT sha256(found::VARCHAR) AS row_hash FROM found)",
        )
        assert hashed is not None  # it is a SELECT
        return str(hashed.fetchall()[0][0])


@contextlib.contextmanager
def _opened(sql: str, database: Path | None) -> Iterator[duckdb.DuckDBPyRelation]:
    """Yield the relation of a checked query; DuckDB's errors meanwhile become ours."""
    import duckdb

    if database is not None and not database.is_file():
        raise MissingFileError(
            f"DuckDB database {str(database)!r} is not there",
            remedy="correct `database` in the configuration's prompt source",
        )
    with duckdb.connect(config={"python_enable_replacements": "false"}) as connection:
        try:
            if database is not None:
                # Attached, as two connections to one path would share settings.
                path = str(database).replace("'", "''")
                connection.execute(f"ATTACH '{path}' AS source (READ_ONLY)")
                connection.execute("USE source")
            require_select(connection, sql)
            # A view, as a relation of a text that ends in `; -- a comment` cannot be built on.
            connection.execute(f"CREATE TEMP VIEW {VIEW} AS {sql}")
            yield connection.view(VIEW)
        except duckdb.Error as error:
            raise DataError(
                f"the query cannot be run: {error}",
                where=f"`sql`: {sql.strip()[:200]}",
                remedy="try it in duckdb; paths in it start at the working directory",
            ) from None


def require_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Return when ``sql`` is one SELECT and nothing in it writes.

    Raises:
        DataError: it is not.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise DataError(f"{len(statements)} SQL statements", expected="exactly one SELECT")
    if others := more_than_reading(connection, statements[0].query):
        raise DataError(
            f"a statement of type {statements[0].type.name}: {', '.join(others)}",
            expected="one SELECT (or FROM, WITH, VALUES) that only reads",
            where=f"`sql`: {sql.strip()[:200]}",
        )
