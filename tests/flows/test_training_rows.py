"""Which exported file a round trains on, and as what rows."""

import polars as pl
import pytest

from flows.training_round import training_export, training_rows
from stages.export import export_row
from stages.unpaired import unpaired_rows

ASKED = [{"role": "user", "content": "2 + 2?"}]


def said(text):
    return [{"role": "assistant", "content": text}]


def exports(*described):
    return pl.concat(
        export_row(name, split, f"{name}-{split}", rows, "0") for name, split, rows in described
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([("trl_jsonl", "train", 1), ("trl_unpaired_jsonl", "train", 1)], "trl_unpaired_jsonl"),
        ([("trl_parquet", "train", 1), ("trl_jsonl", "train", 1)], "trl_jsonl"),
        ([("trl_parquet", "train", 1), ("trl_unpaired_jsonl", "heldout", 1)], "trl_parquet"),
        ([("trl_jsonl", "train", 1), ("trl_unpaired_jsonl", "train", 0)], "trl_jsonl"),
    ],
)
def test_single_answers_come_from_the_unpaired_file_else_from_pairs(written, expected):
    assert training_export(exports(*written), unpaired=True)["format"] == expected


def test_the_rows_are_answers_with_their_labels(tmp_path):
    pair = {
        "pair_id": "p",
        "prompt": ASKED,
        "chosen": said("4"),
        "rejected": said("5"),
        "chosen_candidate_id": "c4",
        "rejected_candidate_id": "c5",
    }
    pairs = pl.DataFrame([pair])
    pairs.write_ndjson(tmp_path / "pairs.jsonl")
    unpaired_rows(pairs).write_ndjson(tmp_path / "unpaired.jsonl")
    expected = [(ASKED, "4", True), (ASKED, "5", False)]
    for name, ids in (("pairs", ["p:chosen", "p:rejected"]), ("unpaired", ["c4", "c5"])):
        rows = training_rows(tmp_path / f"{name}.jsonl", unpaired=True)
        assert rows["answer_id"].to_list() == ids
        assert rows.drop("answer_id").rows() == expected
    assert training_rows(tmp_path / "pairs.jsonl").rows() == [("p", ASKED, "4", "5")]
