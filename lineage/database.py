"""`lineage.duckdb`: built from the files of a workspace and published by rename.

An analyst may hold the published file open all day: a publisher never touches it, it puts a new
one in its place. The file holds no fact of its own, so building it anew mends everything.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from lineage.counting import funnel_counts
from lineage.ddl import (
    STAGE_KEY,
    STAGE_KEY_MEANING,
    VIEWS,
    comment_on,
    create_main_view,
    create_record_table,
    create_store_view,
    view_file,
)
from lineage.gathering import Problem, gather
from lineage.known import Known, read_known
from lineage.workspace import commit_rename, exclusive_lock
from stages.errors import WorkspaceError
from stages.tables import RECORD_TABLES, ROW_TABLES, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineage.gathering import Facts
    from lineage.workspace import Workspace

LAYOUT = 3
"""Raised when an older `lineage.duckdb` would be misread; it is then built anew."""

CANNOT_WRITE = (duckdb.IOException, duckdb.TransactionException, duckdb.FatalException)
"""What DuckDB raises when a disk is full, by how far it has come."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """A published `lineage.duckdb`: where, the files set aside, and how long it took."""

    path: Path
    problems: tuple[Problem, ...]
    seconds: float


def publish(workspace: Workspace) -> Path:
    """Build a new `lineage.duckdb`, put it in the old one's place and return its path.

    What the old one has found in part-files that are still the same is taken from there.

    Raises:
        WorkspaceError: the workspace cannot be written.
    """
    return _publish(workspace, read_known).path


def rebuild(workspace: Workspace, *, verify_hashes: bool = False) -> Publication:
    """As ``publish``, from the files alone, and say which were set aside; these are logged too.

    ``verify_hashes`` also compares every part-file's bytes with its record.

    Raises:
        WorkspaceError: the workspace cannot be written.
    """
    return _publish(workspace, lambda _: Known(), verify_hashes=verify_hashes)


def _publish(
    workspace: Workspace, known_of: Callable[[Workspace], Known], *, verify_hashes: bool = False
) -> Publication:
    started = time.perf_counter()
    try:
        with exclusive_lock(workspace.root / ".lineage.lock"):
            _remove_leftovers(workspace)
            known = known_of(workspace)
            facts = gather(workspace, known, verify_hashes=verify_hashes)
            temporary = workspace.root / f".lineage.duckdb.{os.getpid()}.tmp"
            _build(temporary, facts, funnel_counts(facts, known))
            _flush(temporary)
            commit_rename(temporary, workspace.lineage_database)
    except (OSError, *CANNOT_WRITE) as error:
        raise WorkspaceError(
            f"cannot write {workspace.lineage_database.name} ({error})",
            expected="a folder that this user may write to, with room for it",
            where=str(workspace.root),
            remedy="mend that and run `prefmill lineage rebuild`; nothing else is lost",
        ) from None
    for problem in facts.problems:
        log.warning("set aside %s", problem)
    seconds = time.perf_counter() - started
    return Publication(workspace.lineage_database, tuple(facts.problems), seconds)


def _remove_leftovers(workspace: Workspace) -> None:
    # Under the lock no other publisher is alive, so these belong to dead ones.
    for path in workspace.root.glob(".lineage.duckdb.*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _build(path: Path, facts: Facts, funnels: pa.Table) -> None:
    connection = duckdb.connect(str(path))
    try:
        connection.execute("BEGIN")
        connection.execute("CREATE SCHEMA store")
        _note_origin(connection, facts)
        for schema in RECORD_TABLES:
            connection.execute(create_record_table(schema))
            connection.register("gathered", facts.record_table(schema))
            connection.execute(f'INSERT INTO main."{schema.name}" SELECT * FROM gathered')  # noqa: S608 - our name
            connection.unregister("gathered")
            _comment(connection, "TABLE", schema)
        connection.register("funnels", funnels)
        connection.execute("CREATE TABLE store.funnel_counts AS FROM funnels")
        connection.unregister("funnels")
        # A view of a view reads the list of files again: they are made over lists of none.
        for schema in ROW_TABLES:
            connection.execute(create_store_view(schema, ()))
            if schema.name not in VIEWS:
                connection.execute(create_main_view(schema))
                _comment(connection, "VIEW", schema)
        for name in VIEWS:
            _add_view(connection, name)
        for schema in ROW_TABLES:
            if paths := facts.parts[schema.name]:
                connection.execute(create_store_view(schema, paths))
        connection.execute("COMMIT")
    finally:
        connection.close()


def _note_origin(connection: duckdb.DuckDBPyConnection, facts: Facts) -> None:
    connection.execute("CREATE TABLE store.published (root VARCHAR, layout INTEGER)")
    connection.execute("INSERT INTO store.published VALUES (?, ?)", [str(facts.root), LAYOUT])
    problems = [(problem.path, problem.problem) for problem in facts.problems]
    _add_texts(connection, "problems", ("path", "problem"), problems)
    _add_texts(connection, "checked_parts", ("path", "stamp"), list(facts.checked.items()))


def _add_texts(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    columns: tuple[str, str],
    rows: list[tuple[str, str]],
) -> None:
    """Make a table of two columns of text in schema ``store``."""
    texts = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
    schema = pa.schema([(column, pa.string()) for column in columns])
    connection.register("texts", pa.table(texts, schema=schema))
    connection.execute(f"CREATE TABLE store.{name} AS FROM texts")
    connection.unregister("texts")


def _comment(connection: duckdb.DuckDBPyConnection, kind: str, schema: Table) -> None:
    connection.execute(comment_on(kind, schema.name, f"A row is {schema.row}."))
    for column in schema.columns:
        unit = f" ({column.unit})" if column.unit else ""
        connection.execute(
            comment_on("COLUMN", f"{schema.name}.{column.name}", column.meaning + unit)
        )
    if kind == "VIEW":
        connection.execute(comment_on("COLUMN", f"{schema.name}.{STAGE_KEY}", STAGE_KEY_MEANING))


def _add_view(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    view = view_file(name)
    connection.execute(view.statement)
    connection.execute(comment_on("VIEW", name, view.question))
    for column, meaning in view.columns.items():
        connection.execute(comment_on("COLUMN", f"{name}.{column}", meaning))
