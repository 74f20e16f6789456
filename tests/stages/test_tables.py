"""Tables are declared once; what does not fit is refused before it is written."""

import datetime as dt

import polars as pl
import pyarrow as pa
import pytest

from stages.errors import DataError
from stages.tables import (
    ALL_TABLES,
    DECISIONS,
    PROMPTS,
    RECORD_TABLES,
    ROW_TABLES,
    RUNS,
    SCORES,
    table,
)
from tests.stages.rows import prompts, scores, table_of

EVERY = pytest.mark.parametrize("declared", ALL_TABLES.values(), ids=lambda t: t.name)
SCORE = scores({"p1": {"c1": 0.5}})
USER = {"role": "user", "content": "Hello?"}


@EVERY
def test_an_empty_frame_is_a_table(declared):
    arrow = declared.to_arrow(declared.empty())
    assert arrow.num_rows == 0
    assert arrow.schema == declared.arrow_schema


@EVERY
def test_the_key_and_the_references_are_columns(declared):
    assert declared.key
    for name in declared.key:
        assert not declared.column(name).nullable
    for name, target in declared.references.items():
        other, _, column = target.partition(".")
        assert declared.column(name).type == table(other).column(column).type
        assert table(other).key == (column,), "only a table's whole key finds one row"


@EVERY
def test_every_column_says_what_it_means(declared):
    assert declared.row
    assert len(set(declared.column_names)) == len(declared.columns)
    for column in declared.columns:
        assert column.meaning, column.name
        if column.minimum is not None and column.maximum is not None:
            assert column.minimum < column.maximum


def test_every_table_is_listed_once():
    assert len(ALL_TABLES) == len(ROW_TABLES) + len(RECORD_TABLES)


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(DataError, match="unknown table 'pair'; nearest known: pairs"):
        table("pair")


def test_rows_come_back_as_they_were_in_declared_order():
    frame = prompts({"prompt_id": "p1", "messages": [{"role": "system", "content": "é\n"}, USER]})
    arrow = PROMPTS.to_arrow(frame.select(reversed(frame.columns)))
    assert arrow.column_names == PROMPTS.column_names
    assert arrow.to_pylist() == frame.to_dicts()


@pytest.mark.parametrize("name", SCORES.column_names)
def test_a_missing_column_is_refused(name):
    with pytest.raises(DataError, match=rf"table 'scores': missing columns \['{name}'\]"):
        SCORES.to_arrow(SCORE.drop(name))


def test_an_unknown_column_is_refused():
    with pytest.raises(DataError, match=r"unknown columns \['extra'\]"):
        SCORES.to_arrow(SCORE.with_columns(extra=1))


@pytest.mark.parametrize("column", SCORES.columns, ids=lambda c: c.name)
def test_nulls_are_refused_where_they_mean_nothing(column):
    frame = SCORE.with_columns(pl.lit(None).alias(column.name))
    if column.nullable:
        assert SCORES.to_arrow(frame).column(column.name).null_count == 1
    else:
        with pytest.raises(DataError, match=f"1 nulls in '{column.name}'"):
            SCORES.to_arrow(frame)


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": None}], [{"role": None, "content": "a"}], [USER, None]],
)
def test_nulls_within_messages_are_refused(messages):
    with pytest.raises(DataError, match="nulls"):
        PROMPTS.to_arrow(prompts({"messages": messages}))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("judgments", 1.5),
        ("judgments", "many"),
        ("score", "high"),
        ("score", 2**53 + 1),
        ("score", dt.timedelta(seconds=1)),
        ("scorer", ["a"]),
    ],
)
def test_a_value_that_would_change_is_refused(column, value):
    frame = SCORE.with_columns(pl.Series(column, [value]))
    with pytest.raises(DataError, match="table 'scores': "):
        SCORES.to_arrow(frame)


def test_a_value_that_keeps_its_meaning_is_converted():
    frame = SCORE.with_columns(
        judgments=pl.lit(2.0), score=pl.lit(0.5, pl.Float32), scorer=pl.lit("a", pl.Categorical)
    )
    (row,) = SCORES.to_arrow(frame).to_pylist()
    assert (row["judgments"], row["score"], row["scorer"]) == (2, 0.5, "a")
    assert SCORES.to_arrow(frame).schema == SCORES.arrow_schema


def test_times_are_in_utc_and_finer_ones_are_refused():
    noon = dt.datetime(2026, 1, 2, 13, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    run = table_of(RUNS, [{"flow": "refresh", "status": "running", "started_at": noon}])
    (row,) = RUNS.to_arrow(run).to_pylist()
    assert row["started_at"] == dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
    finer = run.with_columns(started_at=pl.lit(1).cast(pl.Datetime("ns", "UTC")))
    with pytest.raises(DataError, match="would lose data"):
        RUNS.to_arrow(finer)


def test_nullability_is_in_the_schema():
    assert DECISIONS.arrow_schema.field("kept") == pa.field("kept", pa.bool_(), nullable=False)
    assert DECISIONS.arrow_schema.field("reason") == pa.field("reason", pa.string())
