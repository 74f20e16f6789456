"""Facts about a whole table: unique keys, references, shares; computed by DuckDB over its parts.

DuckDB streams the part-files under a memory limit and gives one row a fact; whether a fact is
within its limit is then Great Expectations' verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from validators.expectations import SHARES, Severity
from validators.suites import MAX_EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stages.tables import Table

MEMORY_LIMIT = "2GB"
THREADS = 2


@dataclass(frozen=True)
class Fact:
    """One fact of a whole table: how many of its rows are counted, and how many may be."""

    name: str
    column: str
    severity: Severity
    rows: int
    unexpected: int
    share: float
    limit: float
    examples: tuple[str, ...]


@dataclass(frozen=True)
class _Question:
    name: str
    column: str
    condition: str
    limit: float = 0.0
    severity: Severity = "must"


def table_facts(
    schema: Table, parts: Sequence[Path], references: Mapping[str, Sequence[Path]]
) -> list[Fact]:
    """Return the facts of the rows in ``parts``; a referenced table not given is not checked."""
    import duckdb

    with duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT}) as connection:
        connection.execute(f"SET threads = {THREADS}")
        _load(connection, schema, "checked", parts)
        for name in {target.split(".")[0] for target in schema.references.values()}:
            if name in references:
                _load_ids(connection, schema, name, references[name])
        row = connection.execute("SELECT count(*) FROM checked").fetchone()
        rows = int(row[0]) if row else 0
        return [_ask(connection, schema, q, rows) for q in _questions(schema, set(references))]


def _questions(schema: Table, given: set[str]) -> list[_Question]:
    """Return what is asked of the table; each condition is true for the rows to be counted."""
    single = len(schema.key) == 1
    name = "column_values" if single else "compound_columns"
    asked = [_Question(f"expect_{name}_to_be_unique", ", ".join(schema.key), "repeated")]
    for column, target in schema.references.items():
        table, target_column = target.split(".")
        if table in given:
            held = f"(FROM {_quoted(f'ids of {table}.{target_column}')})"
            condition = f"{_quoted(column)} IS NOT NULL AND {_quoted(column)} NOT IN {held}"
            asked.append(_Question(f"expect_column_values_to_be_in_{table}", column, condition))
    return asked + [
        _Question(share.name, share.column, share.condition, share.limit, share.severity)
        for share in SHARES.get(schema.name, ())
    ]


def _ask(connection: Any, schema: Table, question: _Question, rows: int) -> Fact:
    key = ", ".join(_quoted(column) for column in schema.key)
    examples_of = f"min(concat_ws('/', {key}), {MAX_EXAMPLES})"
    # Formatted in: names from the declarations and conditions written here. Never a value.
    if question.condition == "repeated":
        repeated = f"SELECT {key}, count(*) AS times FROM checked GROUP BY ALL HAVING times > 1"  # noqa: S608
        counted = f"SELECT coalesce(sum(times), 0), {examples_of} FROM ({repeated})"  # noqa: S608
    else:
        counted = f"SELECT count(*), {examples_of} FROM checked WHERE {question.condition}"  # noqa: S608
    found, examples = connection.execute(counted).fetchone()
    return Fact(
        name=question.name,
        column=question.column,
        severity=question.severity,
        rows=rows,
        unexpected=int(found),
        share=int(found) / rows if rows else 0.0,
        limit=question.limit,
        examples=tuple(examples or ()),
    )


def _load(connection: Any, schema: Table, name: str, parts: Sequence[Path]) -> None:
    """Make ``name`` a view of the part-files, or an empty table when there are none."""
    if not parts:
        connection.register("no_rows", schema.arrow_schema.empty_table())
        connection.execute(f"CREATE TABLE {name} AS FROM no_rows")
        return
    connection.read_parquet(_paths(parts), hive_partitioning=False).create_view(name)


def _load_ids(connection: Any, schema: Table, name: str, parts: Sequence[Path]) -> None:
    """Make a table of the ids that ``schema``'s references may hold."""
    for target in {t for t in schema.references.values() if t.split(".")[0] == name}:
        held = _quoted(f"ids of {target}")
        connection.execute(f"CREATE TABLE {held} (id VARCHAR)")
        if parts:
            files = connection.read_parquet(_paths(parts), hive_partitioning=False)
            files.select(_quoted(target.split(".")[1])).insert_into(held)


def _paths(parts: Sequence[Path]) -> list[str]:
    """The files' names, with what DuckDB would take for a glob escaped."""
    return [re.sub(r"([*?\[])", r"[\1]", str(path)) for path in parts]


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
