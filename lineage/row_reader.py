"""Rows of the published lineage as dictionaries, times as ISO-8601 text."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from lineage.query import REBUILD, connect
from stages.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineage.workspace import Workspace

Row = dict[str, Any]


@dataclass(frozen=True)
class RowReader:
    """Answers SQL of our own; values are bound."""

    connection: duckdb.DuckDBPyConnection

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Return what ``sql`` finds, ``values`` bound to its ``?`` or ``$1``."""
        return self._fetched(self.connection.execute(sql, list(values)))

    def named_rows(self, sql: str, values: Row) -> list[Row]:
        """Return what ``sql`` finds, ``values`` bound by name."""
        return self._fetched(self.connection.execute(sql, values))

    def _fetched(self, result: duckdb.DuckDBPyConnection) -> list[Row]:
        names = [column[0] for column in result.description or ()]
        found = result.fetchall()
        return [dict(zip(names, map(_plain, row), strict=True)) for row in found]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


@contextmanager
def reading(workspace: Workspace) -> Iterator[RowReader]:
    """Give a reader of the published lineage.

    Raises:
        MissingFileError: nothing was published yet.
        DataError: a part-file is broken.
    """
    connection = connect(workspace)
    try:
        yield RowReader(connection)
    except duckdb.Error as error:
        raise DataError(str(error), remedy=f"{REBUILD}, which sets broken files aside") from None
    finally:
        connection.close()
