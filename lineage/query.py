"""SQL of users on `lineage.duckdb`, read-only and confined to the workspace."""

from __future__ import annotations

import os
import re
import tempfile
from typing import TYPE_CHECKING, cast

import duckdb
import polars as pl

from lineage.database import LAYOUT
from lineage.ddl import VIEWS, literal
from stages.errors import DataError, MissingFileError, WorkspaceError, nearest
from stages.reading_sql import more_than_reading
from stages.tables import ALL_TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lineage.workspace import Workspace

REBUILD = "run `prefmill lineage rebuild`"


def query(
    workspace: Workspace,
    sql: str,
    parameters: Sequence[object] | Mapping[str, object] | None = None,
) -> pl.DataFrame:
    """Return what one reading statement finds in the published `lineage.duckdb`.

    ``parameters`` are bound to ``?`` or ``$name``. Files outside the workspace cannot be read.

    Raises:
        DataError: the statement is broken, would write, or reads outside the workspace.
        MissingFileError: nothing was published yet.
        WorkspaceError: the file was published for another folder, or cannot be opened.
    """
    connection = connect(workspace)
    try:
        require_reading(connection, sql)
        relation = connection.sql(sql, params=parameters)
        _require_no_interval(relation)
        arrow = relation.to_arrow_table()
        frame = cast("pl.DataFrame", pl.from_arrow(arrow))
    except (duckdb.Error, pl.exceptions.PolarsError) as error:
        raise _sql_error(error, sql) from None
    finally:
        connection.close()
    return frame.with_columns(_whole_numbers(frame))


def connect(workspace: Workspace) -> duckdb.DuckDBPyConnection:
    """Return a connection that can read the published file and the workspace, nothing else.

    The file is attached to an in-memory database: DuckDB hands a second connection to the same
    path the first one's instance, which would be a file that has been replaced since.

    Raises:
        MissingFileError: nothing was published yet.
        WorkspaceError: the file was published for another folder, or cannot be opened.
    """
    path, root = workspace.lineage_database, str(workspace.root.resolve())
    if not path.is_file():
        raise MissingFileError("there is no lineage.duckdb yet", where=root, remedy=REBUILD)
    connection = duckdb.connect(config={"python_enable_replacements": "false"})
    spill = os.path.join(tempfile.gettempdir(), f"prefmill-duckdb-{os.getpid()}")  # noqa: PTH118
    try:
        connection.execute(f"ATTACH {literal(str(path.resolve()))} AS lineage (READ_ONLY)")
        connection.execute("USE lineage")
        _require_current(connection, root)
        connection.execute(f"SET temp_directory = {literal(spill)}")
        connection.execute(f"SET allowed_directories = [{literal(root)}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        raise WorkspaceError(
            f"lineage.duckdb cannot be read ({_first_line(error)})", where=root, remedy=REBUILD
        ) from None
    except WorkspaceError:
        connection.close()
        raise
    return connection


def _require_current(connection: duckdb.DuckDBPyConnection, root: str) -> None:
    found = connection.execute("SELECT root, layout FROM store.published").fetchall()
    if found != [(root, LAYOUT)]:
        raise WorkspaceError(
            f"lineage.duckdb was published for (folder, layout) {found}",
            expected=f"{[(root, LAYOUT)]}",
            where=root,
            remedy=f"if the workspace was moved or prefmill upgraded, {REBUILD}",
        )


def require_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Return when ``sql`` is one statement that only reads.

    Raises:
        DataError: it is not.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise DataError(f"{len(statements)} SQL statements", expected="exactly one")
    kind = statements[0].type.name
    text = statements[0].query
    if kind == "EXPLAIN":
        # The options are words: a bracket in a comment would hide what is explained, and done.
        options = r"\(\s*\w+(\s+\w+)?(\s*,\s*\w+(\s+\w+)?)*\s*\)"
        text = re.sub(rf"(?i)^\s*explain(\s+analyze)?(\s*{options})?\s", "", text, count=1)
    if others := more_than_reading(connection, text):
        reading = kind in {"SELECT", "EXPLAIN"}
        raise _refused(others[0] if reading else f"a statement of type {kind}")


def _require_no_interval(relation: duckdb.DuckDBPyRelation) -> None:
    kinds = zip(relation.columns, relation.types, strict=True) if relation else ()
    if found := [name for name, kind in kinds if str(kind) == "INTERVAL"]:
        raise DataError(
            f"the answer has intervals: {', '.join(found)}",
            expected="numbers, texts and times",
            remedy="`epoch(a - b)` gives the seconds between two times",
        )


def _refused(what: str) -> DataError:
    return DataError(
        f"refused: {what}",
        expected="one SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN: the "
        "lineage is read-only",
        remedy="for PIVOT name the values (`FROM (PIVOT ... ON ... IN (...) USING ...)`); to "
        "write, open lineage.duckdb with duckdb and copy what you need into a file of yours",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _sql_error(error: Exception, sql: str) -> DataError:
    message = str(error).strip()
    if match := re.search(r"Table with name (\S+) does not exist", message):
        names = sorted({*VIEWS, *ALL_TABLES})
        return DataError(
            f"there is no table or view {match[1]!r}{nearest(match[1], names)}",
            expected=f"one of {', '.join(names)}",
            where=sql.strip(),
        )
    remedy = ""
    if isinstance(error, duckdb.PermissionException):
        remedy = "only files inside the workspace can be read, by their absolute path"
    elif isinstance(error, duckdb.IOException):
        remedy = REBUILD + ", which sets broken files aside"
    return DataError(message.replace("\n\n", "\n"), remedy=remedy)


def _whole_numbers(frame: pl.DataFrame) -> list[pl.Expr]:
    """Casts for sums of integers, which DuckDB returns as DECIMAL(38, 0), where they fit."""
    limit = 2**63
    return [
        pl.col(name).cast(pl.Int64)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Decimal)
        and kind.scale == 0
        and frame.select(pl.col(name).cast(pl.Float64).abs().max().fill_null(0) < limit).item()
    ]
