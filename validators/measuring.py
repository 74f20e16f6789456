"""How often each expectation is broken, counted by polars; part by part, then added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from stages.errors import DataError
from validators.expectations import Expectation, row_expectations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stages.tables import Table

MAX_EXAMPLES = 10


@dataclass(frozen=True)
class Measured:
    """How often one expectation is broken, and by which rows."""

    expectation: Expectation
    rows: int
    looked_at: int
    """Rows that it says something about: a null, say, is in no range and out of none."""
    unexpected: int
    examples: tuple[str, ...] = ()
    """The ids of the first ten such rows."""

    @property
    def counts_nulls(self) -> bool:
        """Whether the nulls are what breaks it."""
        return self.expectation.kind == "ExpectColumnValuesToNotBeNull"

    @property
    def breaks_must(self) -> bool:
        """Whether rows break what every row must meet."""
        return self.unexpected > 0 and self.expectation.severity == "must"


def measure_rows(schema: Table, frame: pl.DataFrame) -> list[Measured]:
    """Return, for each expectation about the rows of ``schema``, how many in ``frame`` break it.

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
    conditions = {
        str(place): (e, e.broken)
        for place, e in enumerate(row_expectations(schema))
        if e.broken is not None
    }
    counts = frame.select(
        pl.struct(broken.count().alias("looked_at"), broken.sum().alias("unexpected")).alias(place)
        for place, (_, broken) in conditions.items()
    ).row(0)
    return [
        Measured(
            e,
            frame.height,
            counted["looked_at"],
            counted["unexpected"],
            _ids(schema, frame.filter(broken)) if counted["unexpected"] else (),
        )
        for (e, broken), counted in zip(conditions.values(), counts, strict=True)
    ]


def added(parts: Iterable[list[Measured]]) -> list[Measured]:
    """Return what the parts of one table measure together."""
    return [
        Measured(
            of_parts[0].expectation,
            sum(m.rows for m in of_parts),
            sum(m.looked_at for m in of_parts),
            sum(m.unexpected for m in of_parts),
            tuple(example for m in of_parts for example in m.examples)[:MAX_EXAMPLES],
        )
        for of_parts in zip(*parts, strict=True)
    ]


def row_id(schema: Table) -> pl.Expr:
    """Return what a row is called: its key, joined by slashes."""
    return pl.concat_str(
        [pl.col(name).cast(pl.String).fill_null("null") for name in schema.key], separator="/"
    )


def _ids(schema: Table, broken: pl.DataFrame) -> tuple[str, ...]:
    return tuple(broken.head(MAX_EXAMPLES).select(row_id(schema)).to_series().to_list())
