"""Rows of files: each broken one named by line and column, or set aside; none lost in silence."""

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError, MissingFileError
from stages.row_files import BadRows, read_rows


def values_of(path):
    return [row.values for row in read_rows(path)]


def refused(path):
    with pytest.raises(DataError) as caught:
        values_of(path)
    return str(caught.value)


def set_aside(path):
    """Return {number: row} of what is read, and {number: (reason, text)} of what is set aside."""
    bad = BadRows.of_file(path, skip=True)
    read = {row.number: row.values for row in read_rows(path, bad)}
    return read, {row.number: (row.reason, row.text) for row in bad.rows}


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ('{"prompt": "b",,}', "line 3, column 16", "expected a string key"),
        ('{"prompt": "b"', "line 3, column 15", "unexpected end of data"),
        ("[1, 2]", "line 3, column 1", "a list instead of an object"),
        ('"b"', "line 3, column 1", "a str instead of an object"),
        ('{"prompt": "\\ud800"}', "line 3, column 13", "surrogate"),
        (f'{{"prompt": {"1" * 5000}}}', "line 3, column 12", "infinity"),
        ("[" * 100_000, "line 3, column 1026", "depth limit"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, line, where, what):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + line + "\n")
    message = refused(path)
    assert f"{path}, {where}." in message
    assert what in message


def test_a_line_separator_within_a_text_is_no_end_of_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert [row.values for row in read_rows(path)] == [{"prompt": "a\u2028b\u0085c"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_passed_over(tmp_path, name):
    text = '{"prompt": "a"}' if name == "a.jsonl" else "prompt\na"
    (tmp_path / name).write_text(text + "\n", encoding="utf-8-sig")
    assert [row.values for row in read_rows(tmp_path / name)] == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.parquet", b"", "cannot read"),
        ("a.parquet", b"PAR1 and then nothing PAR1", "cannot read"),
        ("a.jsonl", '{"prompt": "é'.encode() + b'\xff"}\n', "no UTF-8"),
        ("a.csv", b"prompt\n\xff\n", "no UTF-8"),
        ("a.csv", b"\xff\na\n", "no UTF-8"),
        ("a.csv", b"prompt,topic,prompt\na,b,c\n", "columns ['prompt'] are named twice"),
        ("a.txt", b"Hello?", "cannot tell the format"),
        ("a", b"Hello?", "cannot tell the format"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert what in message
    assert str(path) in message


def test_a_byte_that_is_no_utf8_is_named_by_line_and_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xc3\xa9\xff"}\n')  # {"a": "é and then the byte
    assert f"{path}, line 2, column 9." in refused(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.csv"):
        values_of(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("a.jsonl", b"\n \r\n"), ("a.csv", b""), ("a.csv", b"prompt\n\n")],
)
def test_a_file_without_rows_has_none(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert values_of(path) == []


# --- CSV

RAGGED = b"""a,b
1,2
1
1,2,3
"x
y",2
"x"y,2
\xff,2

,4
"""


def test_ragged_broken_and_undecodable_rows_of_csv_are_set_aside(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(RAGGED)
    read, bad = set_aside(path)
    assert read == {
        2: {"a": "1", "b": "2"},
        5: {"a": "x\ny", "b": "2"},
        10: {"a": None, "b": "4"},
    }
    assert {number: text for number, (_, text) in bad.items()} == {
        3: "1",
        4: "1,2,3",
        7: '"x"y,2',
        8: "\\xff,2",
    }
    assert bad[3][0] == "1 fields under a header of 2"
    assert bad[4][0] == "3 fields under a header of 2"
    assert "broken CSV" in bad[7][0]
    assert "line 3." in refused(path)


def test_an_open_quote_is_an_error_and_not_one_long_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"x,1\ny,2\nz,3\n')
    read, bad = set_aside(path)
    assert not read
    assert bad == {2: ("broken CSV: unexpected end of data", '"x,1\ny,2\nz,3')}
    assert f"{path}, line 2 to 4." in refused(path)


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1)))
def test_what_csv_writes_is_read_again(tmp_path_factory, texts):
    import csv

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["a"], *([text] for text in texts)])
    assert [row["a"] for row in values_of(path)] == texts


def test_a_text_of_a_mebibyte_is_read_from_every_format(tmp_path):
    row = {"prompt": "x" * 2**20}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.csv").write_text(f"prompt\n{row['prompt']}\n")
    pl.DataFrame([row]).write_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert values_of(tmp_path / name) == [row]


# --- Parquet


def test_only_the_columns_chosen_are_read_over_all_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.row_files.ROWS_AT_ONCE", 2)
    frame = pl.DataFrame({"a": [1, 2, 3, 4, 5], "b": ["x"] * 5})
    frame.write_parquet(tmp_path / "a.parquet")
    seen = []

    def choose(schema):
        seen.append(dict(schema))
        return ["a"]

    rows = list(read_rows(tmp_path / "a.parquet", choose=choose))
    assert [(row.number, row.values) for row in rows] == [(n, {"a": n}) for n in range(1, 6)]
    assert seen == [{"a": pl.Int64, "b": pl.String}]
