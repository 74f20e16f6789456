"""Rows that satisfy every expectation, for each table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

if TYPE_CHECKING:
    from stages.tables import Column, Table

SPECIAL: dict[tuple[str, str], pl.Expr] = {
    ("judgments", "other_candidate_id"): pl.lit(None, pl.String),
    ("judgments", "order"): pl.lit(None, pl.String),
    ("prompts", "gold"): pl.when(pl.col("place") % 3 == 2).then(pl.lit("{}")),
    ("pairs", "chosen_score"): pl.lit(2.0),
    ("pairs", "rejected_score"): pl.lit(0.5),
    ("pairs", "margin"): pl.lit(1.5),
    ("candidates", "finish_reason"): pl.lit("stop"),
}


def good_rows(table: Table, rows: int = 30) -> pl.DataFrame:
    """Return ``rows`` rows whose ids are ``COLUMN-PLACE``."""
    places = pl.select(place=pl.int_range(rows))
    frame = places.select(
        SPECIAL.get((table.name, c.name), _values(c)).alias(c.name) for c in table.columns
    )
    columns = [
        frame[name].new_from_index(0, rows) if frame.height < rows else frame[name]
        for name in frame.columns
    ]
    return pl.from_arrow(table.to_arrow(pl.DataFrame(columns)))


def _values(column: Column) -> pl.Expr:
    place = pl.col("place")
    if pa.types.is_list(column.type):
        turn = pl.struct(role=pl.lit("user"), content="Say " + place.cast(pl.String))
        of_bytes = pl.lit(7, pl.UInt8)
        return pl.concat_list(of_bytes if column.type.value_type == pa.uint8() else turn)
    if column.allowed:
        kinds = pl.lit(list(column.allowed)).list
        return kinds.get(place % len(column.allowed))
    if pa.types.is_string(column.type):
        return f"{column.name}-" + place.cast(pl.String)
    if pa.types.is_boolean(column.type):
        return place >= 0
    if pa.types.is_timestamp(column.type):
        return pl.datetime(2026, 1, 1, time_zone="UTC")
    number = column.maximum if column.maximum is not None else (column.minimum or 0) + 1
    return pl.lit(number)
