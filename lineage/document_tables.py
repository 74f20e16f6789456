"""`docs/tables.md`, made from `stages/tables.py`: `python -m lineage.document_tables`."""

from __future__ import annotations

from pathlib import Path

from lineage.ddl import sql_type
from stages.tables import RECORD_TABLES, ROW_TABLES, Column, Table

TABLES_DOCUMENT = Path(__file__).parent.parent / "docs" / "tables.md"

HEADING = """\
# The tables

Made from `stages/tables.py` by `python -m lineage.document_tables`; edit that file instead.

`lineage.duckdb` shows every table under its name (open it as `docs/analysts.md` says), with these
comments on its columns. The rows of the first kind lie in Parquet part-files,
`store/TABLE/stage_key=KEY/part-NNNNN.parquet`; in DuckDB they have one more column, `stage_key`,
the stage output they belong to. Outputs are shared between runs: `stage_runs` says which run uses
which. The view `rounds` adds columns to the table of that name (schema `store` has it bare).
"""


def tables_document() -> str:
    """Return the whole of `docs/tables.md`."""
    kinds = (
        ("Rows, in part-files", ROW_TABLES),
        ("Records, from the JSON files of runs and stages", RECORD_TABLES),
    )
    sections = [HEADING]
    for title, tables in kinds:
        sections.append(f"## {title}\n")
        sections += [_section(schema) for schema in tables]
    return "\n".join(sections)


def _section(schema: Table) -> str:
    lines = [
        f"### `{schema.name}`\n",
        f"A row is {schema.row}. Key: {', '.join(f'`{name}`' for name in schema.key)}.\n",
        "| column | type | meaning |",
        "|---|---|---|",
        *(_row(column, schema) for column in schema.columns),
        "",
    ]
    return "\n".join(lines)


def _row(column: Column, schema: Table) -> str:
    kind = sql_type(column.type).replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")
    notes = [column.meaning]
    if column.unit:
        notes.append(f"unit: {column.unit}")
    if column.allowed:
        notes.append(f"one of {', '.join(f'`{value}`' for value in column.allowed)}")
    if column.name in schema.references:
        notes.append(f"refers to `{schema.references[column.name]}`")
    null = " or null" if column.nullable else ""
    return f"| `{column.name}` | {kind}{null} | {'; '.join(notes).replace('|', '&#124;')} |"


if __name__ == "__main__":
    TABLES_DOCUMENT.write_text(tables_document(), encoding="utf-8")
