"""Exports: what a trainer reads is exactly what was kept, each split in its own file."""

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.export import export_row, preference_rows
from stages.export_formats import FORMATS, TRL_COLUMNS
from stages.tables import EXPORTS, SPLITS
from tests.stages.rows import candidates, pairs, prompts, shuffled
from tests.stages.written import encode

TRL_PREFERENCE = ("trl_jsonl", "trl_parquet")

TEXTS = [
    "plain",
    'quotes " and \\ and \\n',
    "lines\nand\r\nmore\ttabs",
    "Zwölf 🐕 漢字 e\u0301",
    "separators \u2028 \u2029 \u0085 \u00a0",
    "nul \u0000 bell \u0007 delete \u007f",
    "<|eos|> </s> {% x %}",
    " blanks around ",
    "2026-01-02",
    "[1, 2]",
]


def built(texts, heldout=()):
    """Return kept pairs, prompts and candidates: the i-th text is asked, chosen and rejected."""
    ids = [f"{i:03}" for i in range(len(texts))]
    system = {"role": "system", "content": "Be brief."}
    asked = [
        {
            "prompt_id": f"prompt_{i}",
            "messages": [*([system] if n % 2 else []), {"role": "user", "content": text}],
            "split": "heldout" if n in heldout else "train",
        }
        for n, (i, text) in enumerate(zip(ids, texts, strict=True))
    ]
    kept = [
        {
            "pair_id": f"pair_{i}",
            "prompt_id": f"prompt_{i}",
            "chosen_candidate_id": f"c{i}",
            "rejected_candidate_id": f"r{i}",
            "chosen_score": 1.0,
            "rejected_score": 0.1 * n,
            "margin": 1.0 - 0.1 * n,
        }
        for n, i in enumerate(ids)
    ]
    answers = [
        {"candidate_id": f"{role[0]}{i}", "completion": f"{role}: {text}"}
        for role in ("chosen", "rejected")
        for i, text in zip(ids, texts, strict=True)
    ]
    return pairs(*kept), prompts(*asked), candidates(*answers)


def loaded(tmp_path, name, content):
    """Return the rows that `datasets` reads from a file of these bytes."""
    import datasets

    datasets.disable_progress_bars()
    suffix = FORMATS[name].file_name.format(split="train")
    (tmp_path / suffix).write_bytes(content)
    builder = {"trl_jsonl": "json", "trl_parquet": "parquet"}[name]
    files, cache = str(tmp_path / suffix), str(tmp_path / "cache")
    return datasets.load_dataset(builder, data_files=files, split="train", cache_dir=cache)


def test_rows_by_hand():
    rows = preference_rows(*built(["one", "two"]), "train")
    assert rows.row(1, named=True) == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "two"},
        ],
        "chosen": [{"role": "assistant", "content": "chosen: two"}],
        "rejected": [{"role": "assistant", "content": "rejected: two"}],
        "pair_id": "pair_001",
        "chosen_score": 1.0,
        "rejected_score": 0.1,
        "margin": 0.9,
        "confidence": None,
        "length_weight": None,
        "prompt_id": "prompt_001",
        "scorer": "x",
        "chosen_candidate_id": "c001",
        "rejected_candidate_id": "r001",
    }


@pytest.mark.parametrize("name", TRL_PREFERENCE)
def test_datasets_reads_back_exactly_what_was_written(tmp_path, name):
    rows = preference_rows(*built(TEXTS), "train")
    assert rows.height == len(TEXTS)
    assert list(loaded(tmp_path, name, encode(rows, name))) == rows.select(TRL_COLUMNS).to_dicts()


def test_every_line_of_the_jsonl_is_one_pair():
    rows = preference_rows(*built(TEXTS), "train")
    content = encode(rows, "trl_jsonl")
    assert content.endswith(b"\n")
    lines = content.decode().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == rows.select(TRL_COLUMNS).to_dicts()


@settings(max_examples=15)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(0, 3))
def test_equal_rows_give_equal_bytes_whatever_their_order(texts, seed):
    tables = built(texts)
    moved = [shuffled(table, seed + i) for i, table in enumerate(tables)]
    for name in FORMATS:
        content = encode(preference_rows(*tables, "train"), name)
        assert encode(preference_rows(*moved, "train"), name) == content
    lines = encode(preference_rows(*tables, "train"), "trl_jsonl").decode().split("\n")[:-1]
    assert [json.loads(line)["chosen"][0]["content"] for line in lines] == [
        f"chosen: {text}" for text in texts
    ]


def test_no_prompt_is_in_both_files_and_no_pair_is_lost():
    tables = built(TEXTS, heldout=(1, 4, 7))
    rows = {split: preference_rows(*tables, split) for split in SPLITS}
    assert (rows["train"].height, rows["heldout"].height) == (7, 3)
    asked = {
        split: {str(prompt) for prompt in of["prompt"].to_list()} for split, of in rows.items()
    }
    assert not asked["train"] & asked["heldout"]
    assert set(pl.concat(rows.values())["pair_id"]) == set(tables[0]["pair_id"])
    assert rows["heldout"]["pair_id"].to_list() == ["pair_001", "pair_004", "pair_007"]


def test_a_pair_that_was_not_kept_is_not_written():
    kept, asked, answers = built(TEXTS)
    rows = preference_rows(kept.filter(pl.col("pair_id") != "pair_002"), asked, answers, "train")
    assert "pair_002" not in rows["pair_id"].to_list()
    assert rows.height == len(TEXTS) - 1


@pytest.mark.parametrize("name", ["confidence", "length_weight"])
def test_what_is_known_of_some_pairs_is_written_where_it_is(name):
    kept, asked, answers = built(["one", "two"])
    known = kept.with_columns(pl.Series(name, [0.75, None]))
    rows = preference_rows(known, asked, answers, "train")
    lines = encode(rows, "trl_jsonl").decode().splitlines()
    assert [json.loads(line)[name] for line in lines] == [0.75, None]


def test_exports_of_other_bytes_formats_or_splits_have_other_ids():
    asked = [
        ("trl_jsonl", "train", "path", 1, "a"),
        ("trl_jsonl", "train", "path", 1, "b"),
        ("trl_parquet", "train", "path", 1, "a"),
        ("trl_jsonl", "heldout", "path", 1, "a"),
    ]
    exports = [export_row(*one) for one in asked]
    EXPORTS.to_arrow(exports[0])
    assert len({row["export_id"][0] for row in exports}) == 4
    moved = export_row("trl_jsonl", "train", "moved", 1, "a")
    assert moved["export_id"][0] == exports[0]["export_id"][0]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"hf_dataset"}))
def test_a_file_of_two_shards_reads_as_one_of_all_rows(name):
    rows = preference_rows(*built(TEXTS), "train")
    nothing = rows.clear()
    whole, cut = encode(rows, name), encode(nothing, name, rows[:4], nothing, rows[4:])
    if name == "trl_parquet":
        assert pl.read_parquet(cut).equals(pl.read_parquet(whole))
    else:
        assert cut == whole


@pytest.mark.parametrize("name", TRL_PREFERENCE)
def test_a_split_without_pairs_gives_an_empty_file(name):
    rows = preference_rows(*built(["one"]), "heldout")
    content = encode(rows, name)
    if name == "trl_parquet":
        assert pl.read_parquet(content).schema == rows.select(TRL_COLUMNS).schema
    else:
        assert content == b""
