"""What every boundary between stages calls: measure each part, judge the table, stop or go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl

from stages.errors import ValidationError
from stages.tables import VALIDATIONS
from validators.measuring import MAX_EXAMPLES, Measured, measure_rows
from validators.suites import called, verdicts
from validators.table_wide import measure_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stages.tables import Table


def judge(schema: Table, measured: Sequence[Measured]) -> pl.DataFrame:
    """Return Great Expectations' verdicts: a row of VALIDATIONS per expectation."""
    rows = [
        {
            "table": schema.name,
            "expectation": called(m.expectation),
            "column": m.expectation.column,
            "severity": m.expectation.severity,
            "passed": passed,
            "rows": m.rows,
            "unexpected": m.unexpected,
            # ASCII: an id may hold anything.
            "examples": json.dumps(m.examples),
        }
        for m, passed in zip(measured, verdicts(measured), strict=True)
    ]
    return pl.DataFrame(rows, schema=VALIDATIONS.empty().schema)


def validate_part(schema: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a row of VALIDATIONS for each expectation about single rows of ``frame``.

    Raises:
        DataError: a declared column is missing.
    """
    return judge(schema, measure_rows(schema, frame))


def validate_table(
    schema: Table, parts: Sequence[Path], references: Mapping[str, Sequence[Path]]
) -> pl.DataFrame:
    """Return a row of VALIDATIONS for each fact that only all rows in ``parts`` tell.

    Facts are: the key is unique, ids exist in the tables they point to. ``references`` gives the
    part-files of other tables by name; one that is not given is not checked.
    """
    return judge(schema, measure_table(schema, parts, references))


def require_valid(results: Sequence[pl.DataFrame], where: str) -> None:
    """Return if every ``must`` expectation held; a broken ``should`` stops nothing.

    Raises:
        ValidationError: names each broken ``must`` with its count and the ids of its rows.
    """
    broken = pl.concat([VALIDATIONS.empty(), *results]).filter(
        (pl.col("severity") == "must") & ~pl.col("passed")
    )
    if broken.is_empty():
        return
    sentences = [
        f"{row['table']}: {row['unexpected']:,} of {row['rows']:,} rows break "
        f"{row['expectation']} on {row['column']!r} (rows {', '.join(json.loads(row['examples']))}"
        f"{', ...' if row['unexpected'] > MAX_EXAMPLES else ''})"
        for row in broken.iter_rows(named=True)
    ]
    raise ValidationError(
        "; ".join(sentences),
        expected="every `must` expectation to hold",
        where=where,
        remedy="correct the rows named where they come from; nothing after this point has run",
    )
