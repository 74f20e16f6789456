from __future__ import annotations

import re

import polars as pl
import pytest

from stages.tables import CANDIDATES, PAIRS, ROW_TABLES
from tests.validators.good_rows import good_rows
from validators import judge, measure_rows, measure_table
from validators.data_docs import fingerprint, recorded, validation_page

HOSTILE = '<script>alert(1)</script>"><b onmouseover=x>${x}{{7*7}}\u202e'


def checked(schema, frame, stage, folder, references=()):
    path = folder / f"{schema.name}.parquet"
    frame.write_parquet(path)
    nothing = {name: [] for name in references}
    measured = [*measure_rows(schema, frame), *measure_table(schema, [path], nothing)]
    return judge(schema, measured).with_columns(stage=pl.lit(stage)), measured


@pytest.mark.parametrize("schema", ROW_TABLES, ids=lambda s: s.name)
def test_what_was_measured_is_found_again_in_the_record(schema, tmp_path):
    others = {target.split(".")[0] for target in schema.references.values()}
    rows, measured = checked(schema, good_rows(schema), "stage", tmp_path, others)
    found = recorded(schema, rows)
    assert [m.expectation for m in found] == [m.expectation for m in measured]
    assert judge(schema, found).equals(rows.drop("stage"))


def test_the_page_says_what_broke_and_needs_nothing_from_elsewhere(tmp_path):
    of_pairs = good_rows(PAIRS).with_columns(
        pair_id=pl.when(pl.int_range(pl.len()) == 3)
        .then(pl.lit(HOSTILE))
        .otherwise(pl.col("pair_id")),
        margin=pl.when(pl.int_range(pl.len()) == 3).then(-1.0).otherwise(pl.col("margin")),
    )
    rows = pl.concat([
        checked(CANDIDATES, good_rows(CANDIDATES), "generate", tmp_path)[0],
        checked(PAIRS, of_pairs, f"judge:{HOSTILE}", tmp_path)[0],
    ])  # fmt: skip
    page = validation_page("run", rows)
    found = re.findall(r"(\d+) unexpected values found\. (\S+) of (\d+) total rows", page)
    assert found == [("1", "≈3.333%", "30")] * 2  # the margin, and that it is the difference
    assert "alert(1)" in page
    for markup in ("<script", "<b ", "<link", "<img", "http://", "https://", "{{"):
        assert markup not in page.replace("&lt;", "").replace("${x}{{7*7}}", "")
    assert "default-src 'none'" in page
    assert fingerprint(rows) in page
    assert fingerprint(rows.head(3)) not in page


def test_expectations_of_another_version_are_counted_and_left_out(tmp_path):
    rows, _ = checked(PAIRS, good_rows(PAIRS), "pair", tmp_path)
    older = rows.head(1).with_columns(column=pl.lit("colour"))
    assert len(recorded(PAIRS, pl.concat([rows, older]))) == rows.height
    assert "1 expectations of another version" in validation_page("run", pl.concat([rows, older]))
