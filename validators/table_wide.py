"""Facts about a whole table: unique keys, and references that point somewhere.

Ids are compared by a 64-bit hash: 10 million take 80 MB where the texts take 500 MB. What is too
much for memory is looked at in shares, each of the ids whose hashes leave the same remainder. Two
different keys with the same hash are told apart by a second hash; that a reference to nothing goes
unnoticed takes an id of the other table with the same hash: 1 in 10^12 with 10 million ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from stages.part_files import scan_parts
from validators.expectations import reference, uniqueness
from validators.measuring import MAX_EXAMPLES, Measured, row_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stages.tables import Table
    from validators.expectations import Expectation

IDS_AT_ONCE = 16_000_000
OTHER_SEED = 1
HASH, OTHER_HASH = "hash", "other hash"


def measure_table(
    schema: Table, parts: Sequence[Path], references: Mapping[str, Sequence[Path]]
) -> list[Measured]:
    """Return how many rows in ``parts`` repeat a key, and how many point nowhere, per reference.

    ``references`` gives the part-files of other tables by name; one that is not given is not
    checked, one given without part-files holds no rows.
    """
    measured = [_repeated_keys(schema, parts)]
    for target in dict.fromkeys(schema.references.values()):
        held = references.get(target.partition(".")[0])
        if held is not None:
            measured += _dangling(schema, parts, target, held)
    return measured


def _repeated_keys(schema: Table, parts: Sequence[Path]) -> Measured:
    if not parts:
        return Measured(uniqueness(schema), 0, 0, 0)
    frame = scan_parts(list(parts))
    key = pl.col(schema.key[0]) if len(schema.key) == 1 else pl.struct(schema.key)
    hashes, rows = key.hash(), _rows(frame)
    suspects = pl.concat(_repeated(frame, hashes, share) for share in _shares(rows))
    if suspects.is_empty():
        return Measured(uniqueness(schema), rows, rows, 0)
    twice = (
        frame.select(hashes.alias(HASH), key.hash(seed=OTHER_SEED).alias(OTHER_HASH))
        .filter(pl.col(HASH).is_in(suspects.implode()))
        .group_by(HASH, OTHER_HASH)
        .len()
        .filter(pl.col("len") > 1)
        .sort(HASH)
        .collect(engine="streaming")
    )
    named = twice[HASH].head(MAX_EXAMPLES).implode()
    ids = frame.filter(hashes.is_in(named)).select(row_id(schema).unique().sort()).collect()
    return Measured(uniqueness(schema), rows, rows, int(twice["len"].sum()), _first(ids))


def _repeated(frame: pl.LazyFrame, hashes: pl.Expr, share: pl.Expr) -> pl.Series:
    """Return the hashes that more than one row of a share of the table has."""
    found = _hashes(frame, hashes, share).sort()
    return found.filter(found == found.shift()).unique()


def _dangling(
    schema: Table, parts: Sequence[Path], target: str, held: Sequence[Path]
) -> list[Measured]:
    """Return, per column that refers to ``target``, how many rows hold an id that it lacks."""
    columns = [column for column, pointed in schema.references.items() if pointed == target]
    if not parts:
        return [Measured(reference(column, target), 0, 0, 0) for column in columns]
    frame, known = scan_parts(list(parts)), pl.LazyFrame({"id": []}, {"id": pl.String})
    if held:
        known = scan_parts(list(held)).select(id=target.partition(".")[2])
    missing: dict[str, list[pl.Series]] = {column: [] for column in columns}
    for share in _shares(_rows(frame)):
        here = {
            column: _hashes(frame.select(column).drop_nulls(), pl.col(column).hash(), share)
            for column in columns
        }
        # The other table may be ten times as long: only what is asked for is kept of it.
        asked = pl.concat(here.values()).to_frame().lazy()
        hashes = known.select(pl.col("id").hash().alias(HASH))
        there = hashes.join(asked, on=HASH, how="semi").collect(engine="streaming")
        for column, ids in here.items():
            unknown = ids.to_frame().join(there, on=HASH, how="anti")
            missing[column].append(unknown.to_series())
    return [
        _pointing_nowhere(schema, frame, reference(column, target), pl.concat(unknown))
        for column, unknown in missing.items()
    ]


def _pointing_nowhere(
    schema: Table, frame: pl.LazyFrame, expectation: Expectation, missing: pl.Series
) -> Measured:
    """Return what is measured where the ids with the hashes ``missing`` exist nowhere."""
    column = pl.col(expectation.column)
    counts = frame.select(pl.len(), column.count().alias("held")).collect(engine="streaming")
    rows, held = counts.row(0)
    if missing.is_empty():
        return Measured(expectation, rows, held, 0)
    broken = frame.filter(column.is_not_null(), column.hash().is_in(missing.unique().implode()))
    ids = broken.select(row_id(schema)).head(MAX_EXAMPLES).collect()
    return Measured(expectation, rows, held, len(missing), _first(ids))


def _rows(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect(engine="streaming").item())


def _shares(rows: int) -> list[pl.Expr]:
    """Return conditions that part hashes into as many shares as ``rows`` of them need."""
    count = rows // IDS_AT_ONCE + 1
    return [pl.col(HASH) % count == remainder for remainder in range(count)]


def _hashes(frame: pl.LazyFrame, hashes: pl.Expr, share: pl.Expr) -> pl.Series:
    return frame.select(hashes.alias(HASH)).filter(share).collect(engine="streaming").to_series()


def _first(ids: pl.DataFrame) -> tuple[str, ...]:
    return tuple(ids.to_series().head(MAX_EXAMPLES).to_list())
