"""SQL text for names, paths and types of our own, properly quoted. Users' values are bound."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.tables import Table

SQL_FOLDER = Path(__file__).parent / "sql"

VIEWS = (
    "run_stages",
    "dropped_pairs",
    "exported_pairs",
    "mixed_pairs",
    "candidate_outputs",
    "rounds",
    "funnel",
    "prompt_drops",
    "rulings",
    "drops",
    "filter_funnel",
    "filter_overlap",
    "pair_quality",
    "source_yield",
    "judge_health",
    "drift",
    "strategy_comparison",
    "run_noise",
    "length_bias",
    "cost",
    "training_curves",
    "lineage_edges",
    "stale",
    "ids",
)
"""The views of ``lineage/sql/``, each after those that it reads."""

STAGE_KEY = "stage_key"
STAGE_KEY_MEANING = "the stage output that this row belongs to: join stage_runs to find its runs"

_SCALARS = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
}


def identifier(name: str) -> str:
    """``name`` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type; raises ``KeyError`` for one that no table uses."""
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        inner = ", ".join(f"{identifier(f.name)} {sql_type(f.type)}" for f in kind)
        return f"STRUCT({inner})"
    return _SCALARS[kind]


def create_record_table(schema: Table) -> str:
    """The statement that makes an empty table in ``main``."""
    columns = ", ".join(
        f"{identifier(c.name)} {sql_type(c.type)}{'' if c.nullable else ' NOT NULL'}"
        for c in schema.columns
    )
    return f"CREATE TABLE main.{identifier(schema.name)} ({columns})"


def create_store_view(schema: Table, paths: Sequence[str]) -> str:
    """The statement that makes the view of a table's part-files in schema ``store``."""
    view = f"CREATE OR REPLACE VIEW store.{identifier(schema.name)}"
    return f"{view} AS {select_rows(schema, paths)}"


def select_rows(schema: Table, paths: Sequence[str]) -> str:
    """The query of the rows of a table's part-files, with their stage keys.

    Columns are named one by one: a ``NAME=VALUE`` folder above the workspace would otherwise show
    up as a hive column of its own. Where it has a column's name it would take that one's place, so
    that the stage key is read from the path by hand.
    """
    if not paths:
        empty = ", ".join(
            f"CAST(NULL AS {sql_type(c.type)}) AS {identifier(c.name)}" for c in schema.columns
        )
        return f"SELECT {empty}, CAST(NULL AS VARCHAR) AS {STAGE_KEY} WHERE false"
    files = ", ".join(literal(path) for path in paths)
    root = paths[0].rpartition(f"/{STAGE_KEY}=")[0]
    above = {name.lower() for name in re.findall(r"([^/=]+)=", root)}
    columns = _columns(schema)
    options = f"hive_partitioning = true, hive_types = {{'{STAGE_KEY}': VARCHAR}}"
    if above & {STAGE_KEY, *schema.column_names}:
        key = f"regexp_extract(filename, '.*/{STAGE_KEY}=([^/]+)/', 1)"
        columns = f"{', '.join(map(identifier, schema.column_names))}, {key} AS {STAGE_KEY}"
        options = "hive_partitioning = false, filename = true"
    return f"SELECT {columns} FROM read_parquet([{files}], {options})"  # noqa: S608 - quoted


def create_main_view(schema: Table) -> str:
    """The statement that shows a table of schema ``store`` to analysts."""
    name = identifier(schema.name)
    return f"CREATE VIEW main.{name} AS SELECT {_columns(schema)} FROM store.{name}"  # noqa: S608


def _columns(schema: Table) -> str:
    return ", ".join(identifier(name) for name in [*schema.column_names, STAGE_KEY])


def comment_on(kind: str, name: str, text: str) -> str:
    """The statement that comments on a table, view or ``table.column``."""
    quoted = ".".join(identifier(part) for part in ("main", *name.split(".")))
    return f"COMMENT ON {kind} {quoted} IS {literal(text)}"


@dataclass(frozen=True)
class ViewFile:
    """One file of ``lineage/sql/``: its statement, what question it answers, its columns."""

    name: str
    statement: str
    question: str
    columns: dict[str, str]


def view_file(name: str) -> ViewFile:
    """Read ``lineage/sql/NAME.sql``.

    Its leading comment is the question, then a line ``--   COLUMN: MEANING`` per column.
    """
    text = (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    question: list[str] = []
    columns: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        if match := re.fullmatch(r"--   (\w+): (.+)", line):
            columns[match[1]] = match[2]
        elif line.strip("- "):
            question.append(line.strip("- "))
    return ViewFile(name, text, " ".join(question), columns)
