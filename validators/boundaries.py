"""What every boundary between stages calls: check a part, check a table, and stop or go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl

from stages.errors import DataError, ValidationError
from stages.tables import VALIDATIONS
from validators.expectations import Expectation, row_expectations
from validators.suites import MAX_EXAMPLES, ROW_ID, Outcome, check_batch
from validators.table_wide import Fact, table_facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stages.tables import Table

BATCH_ROWS = 100_000
PLACE = ["table", "expectation", "column", "severity"]


def validate_part(schema: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a row of VALIDATIONS for each expectation about single rows of ``frame``.

    Great Expectations sees at most 100,000 rows at a time.

    Raises:
        DataError: a declared column is missing.
    """
    missing = [name for name in schema.column_names if name not in frame.columns]
    if missing:
        raise DataError(
            f"table {schema.name!r} lacks the columns {missing}",
            expected=f"{schema.column_names}",
            where=f"a frame with columns {frame.columns}",
        )
    expectations = row_expectations(schema)
    views = {name: view for e in expectations for name, view in e.views.items()}
    row_id = pl.concat_str(
        [pl.col(name).cast(pl.String).fill_null("null") for name in schema.key], separator="/"
    )
    checked = []
    for start in range(0, max(frame.height, 1), BATCH_ROWS):
        part = frame.slice(start, BATCH_ROWS)
        batch = part.select(row_id.alias(ROW_ID), *[e.alias(n) for n, e in views.items()])
        outcomes = check_batch(schema.name, expectations, batch)
        checked.append(_row_results(schema, expectations, outcomes, part.height))
    return merge(checked)


def validate_table(
    schema: Table, parts: Sequence[Path], references: Mapping[str, Sequence[Path]]
) -> pl.DataFrame:
    """Return a row of VALIDATIONS for each fact about all rows in the part-files ``parts``.

    Facts are: the key is unique, ids exist in the tables they point to, nothing bad happens too
    often. ``references`` gives the part-files of other tables by name; one that is not given is
    not checked, one given without part-files holds no rows.
    """
    facts = table_facts(schema, parts, references)
    if not facts:
        return VALIDATIONS.empty()
    name = f"{schema.name} as a whole"
    shares = {f"fact {place}": fact.share for place, fact in enumerate(facts)}
    outcomes = check_batch(
        name,
        [_fact_expectation(place, fact) for place, fact in enumerate(facts)],
        pl.DataFrame({ROW_ID: [schema.name], **{n: [share] for n, share in shares.items()}}),
    )
    rows = [
        _result(
            schema.name,
            Expectation("", fact.column, fact.severity),
            Outcome(fact.name, outcome.passed, fact.unexpected, list(fact.examples)),
            fact.rows,
        )
        for fact, outcome in zip(facts, outcomes, strict=True)
    ]
    return _frame(rows)


def merge(results: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return one row per table, expectation and column: counts added up, failures kept."""
    if not results:
        return VALIDATIONS.empty()
    lists = pl.col("examples").str.json_decode(pl.List(pl.String))
    merged = (
        pl.concat(results)
        .with_columns(lists)
        .group_by(PLACE, maintain_order=True)
        .agg(
            pl.col("passed").all(),
            pl.col("rows").sum(),
            pl.col("unexpected").sum(),
            pl.col("examples")
            .list.explode(keep_nulls=False, empty_as_null=False)
            .head(MAX_EXAMPLES),
        )
    )
    texts = [json.dumps(ids) for ids in merged["examples"].to_list()]
    return merged.with_columns(pl.Series("examples", texts, pl.String)).select(
        VALIDATIONS.column_names
    )


def require_valid(results: Sequence[pl.DataFrame], where: str) -> None:
    """Return if every ``must`` expectation held; a broken ``should`` stops nothing.

    Raises:
        ValidationError: names each broken ``must`` with its count and the ids of its rows.
    """
    broken = merge(results).filter((pl.col("severity") == "must") & ~pl.col("passed"))
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


def _fact_expectation(place: int, fact: Fact) -> Expectation:
    arguments = (("column", f"fact {place}"), ("max_value", fact.limit))
    return Expectation("ExpectColumnValuesToBeBetween", fact.column, fact.severity, arguments)


def _row_results(
    schema: Table, expectations: Sequence[Expectation], outcomes: Sequence[Outcome], rows: int
) -> pl.DataFrame:
    pairs = zip(expectations, outcomes, strict=True)
    return _frame([_result(schema.name, e, outcome, rows) for e, outcome in pairs])


def _result(table: str, expectation: Expectation, outcome: Outcome, rows: int) -> dict[str, object]:
    """Return one row of VALIDATIONS. Its examples are ASCII: an id may hold anything."""
    return {
        "table": table,
        "expectation": outcome.name,
        "column": expectation.column,
        "severity": expectation.severity,
        "passed": outcome.passed,
        "rows": rows,
        "unexpected": outcome.unexpected,
        "examples": json.dumps(outcome.examples[:MAX_EXAMPLES]),
    }


def _frame(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=VALIDATIONS.empty().schema)
