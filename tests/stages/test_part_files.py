"""A file is read at the path that is named, whatever other paths that would be a pattern of."""

import re
from pathlib import Path

import polars as pl
import pytest

from flows.train_file import read_rows as rows_to_train_on
from flows.training_round import training_rows
from stages.part_files import read_parts, read_rows, scan_parts
from stages.row_files import read_rows as rows_of_file

ROOT = Path(__file__).parents[2]
READERS = re.compile(r"\bpl\.(read|scan)_(parquet|ndjson|csv|ipc)\(")


def pair(name):
    said = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    asked = [{"role": "user", "content": "2 + 2?"}]
    return pl.DataFrame([{"pair_id": name, "prompt": asked, **said}])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("folder", ["seed[1]", "seed*", "seed=1 [1]"])
def test_a_neighbour_that_the_path_is_a_pattern_of_is_not_read(folder, suffix, tmp_path):
    for place, name in ((folder, "meant"), ("seed1", "another"), ("seed=1 1", "another")):
        (tmp_path / place).mkdir()
        path = tmp_path / place / f"pairs{suffix}"
        pair(name).write_ndjson(path) if suffix == ".jsonl" else pair(name).write_parquet(path)
    path = tmp_path / folder / f"pairs{suffix}"
    for read in (read_rows, training_rows, rows_to_train_on):
        rows = read(path)
        assert rows["pair_id"].to_list() == ["meant"], read
        assert "seed" not in rows.columns
    assert [row.values["pair_id"] for row in rows_of_file(path, choose=list)] == ["meant"]
    if suffix == ".parquet":
        assert read_parts(path).equals(scan_parts(path).collect())
        assert read_parts(path)["pair_id"].to_list() == ["meant"]


def test_nothing_else_gives_polars_a_path():
    rooms = ("flows", "lineage", "stages", "trainer", "validators")
    found = {
        str(path.relative_to(ROOT)): READERS.findall(path.read_text(encoding="utf-8"))
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name for name, calls in found.items() if calls} == {"stages/part_files.py"}
