"""The export task on a made-up curation of three shards, and what is copied and pushed of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import polars as pl
import pytest
from click.testing import CliRunner

from flows.cli import cli
from flows.export_copy import copy_exports, push_export
from flows.exporting import export_pairs
from flows.stage_runner import RunContext
from flows.training_round import training_rows
from lineage.workspace import Dataset, Workspace, write_part
from stages.content_ids import file_sha256
from stages.errors import DataError
from stages.export import ExportConfig
from stages.tables import table
from tests.stages import rows

SHARDS = ((0, 1), (2, 5), (3, 4))
"""Prompts of each shard; 1 is held out, the pairs of 2 and 5 are dropped."""

DROPPED = (2, 5)


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.shards.CANDIDATES_JUDGED_TOGETHER", 4)
    monkeypatch.setattr("flows.shards.CANDIDATES_PER_SHARD", 4)
    context = RunContext(Workspace(tmp_path / "workspace"), "run")
    context.workspace.require_writable()
    return context


def curated(context, texts=None, weights=None):
    """Return a curation's tables: prompt i has the candidates ci (chosen) and ri (rejected)."""

    def stored(name, of_prompt):
        schema = table(name)
        frames = [
            rows.table_of(schema, [r for i in shard for r in of_prompt(i)]) for shard in SHARDS
        ]
        parts = [
            write_part(context.workspace, schema, "made-up", index, frame, {})
            for index, frame in enumerate(frames)
        ]
        return Dataset(name, "made-up", tuple(parts))

    def prompt(i):
        split = "heldout" if i == 1 else "train"
        asked = [{"role": "user", "content": f"question {i}"}]
        return [{"prompt_id": f"p{i}", "messages": asked, "split": split, "source": "web"}]

    def candidates(i):
        facts = {"prompt_id": f"p{i}", "finish_reason": "stop"}
        return [
            {**facts, "candidate_id": c, "completion": (texts or {}).get(c, f"text {c}")}
            for c in (f"c{i}", f"r{i}")
        ]

    def pairs(i):
        ids = {"chosen_candidate_id": f"c{i}", "rejected_candidate_id": f"r{i}"}
        return [{"pair_id": f"pair_{9 - i}", "prompt_id": f"p{i}", "scorer": "rules", **ids}]

    def decisions(i):
        ruling = {"pair_id": f"pair_{9 - i}", "filter": "margin", "position": 0}
        kept, reason = (False, "margin_below_minimum") if i in DROPPED else (True, None)
        weighed = {"filter": "length_weight", "position": 1, "value": (weights or {}).get(i)}
        return [
            {**ruling, "kept": kept, "reason": reason},
            *([ruling | weighed] if weights else []),
        ]

    def scores(i):
        facts = {"prompt_id": f"p{i}", "scorer": "rules"}
        return [{**facts, "candidate_id": f"c{i}", "score": 1 - i / 10}]

    made = (prompt, candidates, pairs, decisions, scores)
    names = ("prompts", "candidates", "pairs", "decisions", "scores")
    return [stored(name, of_prompt) for name, of_prompt in zip(names, made, strict=True)]


def exported(context, *formats, more=(), texts=None, weights=None, **settings):
    """Return the `exports` rows of these formats."""
    config = SimpleNamespace(export=ExportConfig(formats=formats, **settings))
    tables = curated(context, texts, weights)
    return export_pairs.fn(context, config, *tables, *more).read(context.workspace)


def path_of(context, exports, format_name, split="train"):
    (path,) = exports.filter(format=format_name, split=split)["path"]
    return context.workspace.root / path


def lines_of(context, exports, format_name, split="train"):
    return [json.loads(line) for line in path_of(context, exports, format_name, split).open()]


def export_rows(context):
    """Return (format, split, pair, line) of every recorded pair, and how many parts they are in."""
    parts = sorted(context.workspace.store.glob("export_rows/*/*.parquet"))
    found = pl.concat([pl.read_parquet(part, hive_partitioning=False) for part in parts])
    return found, len(parts)


def test_every_file_holds_the_kept_pairs_in_the_order_of_the_shards(context):
    exports = exported(context, "trl_jsonl", "llama_factory_json")
    lines = lines_of(context, exports, "trl_jsonl")
    # Within a shard by pair id; pair_8 is held out, pair_7 and pair_4 are dropped.
    assert [line["pair_id"] for line in lines] == ["pair_9", "pair_5", "pair_6"]
    assert [line["chosen"][0]["content"] for line in lines] == ["text c0", "text c4", "text c3"]
    assert [line["prompt"][0]["content"] for line in lines] == [f"question {i}" for i in (0, 4, 3)]
    assert [line["pair_id"] for line in lines_of(context, exports, "trl_jsonl", "heldout")] == [
        "pair_8"
    ]
    array = json.loads(path_of(context, exports, "llama_factory_json").read_text())
    assert [item["pair_id"] for item in array] == ["pair_9", "pair_5", "pair_6"]
    for row in exports.iter_rows(named=True):
        assert file_sha256(context.workspace.root / row["path"]) == row["sha256"]
    counts = {(r["format"], r["split"]): r["rows"] for r in exports.iter_rows(named=True)}
    assert counts == {
        ("trl_jsonl", "train"): 3,
        ("trl_jsonl", "heldout"): 1,
        ("llama_factory_json", "train"): 3,
        ("llama_factory_json", "heldout"): 1,
        ("llama_factory_info", "train"): 0,
    }


def test_every_pairs_line_is_recorded_a_part_for_each_shard(context):
    exports = exported(context, "trl_jsonl", "trl_unpaired_jsonl")
    found, parts = export_rows(context)
    named = found.join(exports.select("export_id", "format", "split"), on="export_id")
    recorded = set(named.select("format", "split", "pair_id", "line").iter_rows())
    paired = {("pair_9", 1), ("pair_5", 2), ("pair_6", 3)}
    answers = {("pair_9", 1), ("pair_5", 3), ("pair_6", 5)}
    assert recorded == {
        *(("trl_jsonl", "train", *of) for of in paired),
        *(("trl_unpaired_jsonl", "train", *of) for of in answers),
        ("trl_jsonl", "heldout", "pair_8", 1),
        ("trl_unpaired_jsonl", "heldout", "pair_8", 1),
    }
    assert parts == len(SHARDS)


def test_a_refused_format_leaves_no_file_of_any(context):
    texts = {"r4": " \n"}  # of the last shard
    with pytest.raises(DataError, match=r"pair_5.*openai_jsonl"):
        exported(context, "trl_parquet", "trl_jsonl", "openai_jsonl", texts=texts)
    assert [path for path in context.workspace.exports.rglob("*") if path.is_file()] == []
    assert exported(context, "trl_jsonl", texts=texts)["rows"].to_list() == [3, 1]


def test_what_a_killed_process_left_is_written_again_with_the_same_bytes(context):
    formats = ("trl_jsonl", "trl_parquet", "hf_dataset", "argilla_json")
    first = exported(context, *formats)
    path = path_of(context, first, "trl_jsonl")
    path.unlink()
    leftover = path.with_name(".train.jsonl.1.tmp")
    leftover.write_bytes(b"half a li")
    assert exported(context, *formats).equals(first)
    assert file_sha256(path) == first.filter(format="trl_jsonl", split="train")["sha256"][0]
    assert not leftover.exists()


def test_unpaired_answers_can_be_labelled_by_score(context):
    band = {"desirable_minimum_score": 0.95, "undesirable_maximum_score": 0.6}
    exports = exported(context, "trl_unpaired_jsonl", unpaired=band)
    lines = lines_of(context, exports, "trl_unpaired_jsonl")
    labels = [(line["candidate_id"], line["label"], line["pair_id"]) for line in lines]
    assert labels == [("c0", True, "pair_9"), ("c4", False, "pair_5")]
    found, _ = export_rows(context)
    assert set(found["pair_id"]) == {"pair_9"}, "only its chosen answer is in the file as desirable"


def test_estimated_noise_becomes_each_pairs_confidence(context):
    schema = table("label_noise")
    estimated = [{"pair_9": 0.25}, {}, {"pair_6": 0.125}]
    parts = [
        rows.table_of(
            schema, [{"pair_id": p, "probability_wrong": wrong} for p, wrong in part.items()]
        )
        for part in estimated
    ]
    noise = Dataset(
        schema.name,
        "noise",
        tuple(
            write_part(context.workspace, schema, "noise", index, part, {})
            for index, part in enumerate(parts)
        ),
    )
    exports = exported(context, "trl_jsonl", more=[noise])
    assert [line["confidence"] for line in lines_of(context, exports, "trl_jsonl")] == [
        0.75,
        None,
        0.875,
    ]


def test_weights_against_length_bias_go_with_their_pairs(context):
    exports = exported(context, "trl_jsonl", "trl_parquet", weights={0: 0.5, 1: 1.5, 4: 1.25})
    lines = lines_of(context, exports, "trl_jsonl")
    assert [(line["pair_id"], line["length_weight"]) for line in lines] == [
        ("pair_9", 0.5),
        ("pair_5", 1.25),
        ("pair_6", None),
    ]
    read = training_rows(path_of(context, exports, "trl_parquet"))
    assert read["length_weight"].to_list() == [0.5, 1.25, None]


def test_a_copy_keeps_the_dataset_folder_and_trusts_no_changed_file(context, tmp_path, monkeypatch):
    import datasets

    exports = exported(context, "trl_jsonl", "hf_dataset", license="cc0-1.0")
    monkeypatch.setattr("flows.export_copy.read_output", lambda *a: exports.select(a[-1]))
    copied = copy_exports(context.workspace, "run", tmp_path / "out")
    assert {str(path.relative_to(tmp_path / "out")): rows for path, rows in copied} == {
        "train.jsonl": 3,
        "heldout.jsonl": 1,
        "hf_dataset/data/train-00000-of-00001.parquet": 3,
        "hf_dataset/data/test-00000-of-00001.parquet": 1,
        "hf_dataset/README.md": None,
    }
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(tmp_path / "out" / "hf_dataset"), cache_dir=cache)
    assert loaded["train"]["pair_id"] == ["pair_9", "pair_5", "pair_6"]
    assert "| web | x | rules | 3 | 1 |" in (tmp_path / "out/hf_dataset/README.md").read_text()
    path_of(context, exports, "trl_jsonl", "heldout").write_text("changed")
    with pytest.raises(DataError, match="changed or deleted"):
        copy_exports(context.workspace, "run", tmp_path / "again")
    assert not list((tmp_path / "again").glob("*heldout*"))


def test_a_push_uploads_the_checked_dataset_folder_alone(context, monkeypatch):
    exports = exported(context, "trl_jsonl", "hf_dataset")
    monkeypatch.setattr("flows.export_copy.read_output", lambda *a: exports.select(a[-1]))
    pushed = {}

    def push(folder, repository, *, private):
        pushed.update({path.name: path.read_bytes() for path in folder.rglob("*.*")})
        return f"{repository} {private}"

    monkeypatch.setattr("flows.export_copy.push_dataset", push)
    assert push_export(context.workspace, "run", "me/pairs", private=True) == "me/pairs True"
    assert set(pushed) == {
        "README.md",
        "train-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    }
    written = path_of(context, exports, "hf_dataset_card")
    assert pushed["README.md"] == written.read_bytes()
    written.write_text("changed")
    with pytest.raises(DataError, match="changed or deleted"):
        push_export(context.workspace, "run", "me/pairs", private=True)
    exports = exports.filter(format="trl_jsonl")
    with pytest.raises(DataError, match="no dataset folder"):
        push_export(context.workspace, "run", "me/pairs", private=True)


def test_a_copy_or_a_push_must_be_asked_for():
    result = CliRunner().invoke(cli, ["export"])
    assert result.exit_code == 2
    assert "--out, or --push-to-hub" in result.output


@pytest.mark.parametrize(("dropped", "lines"), [((0, 2, 3, 4, 5), 1), (DROPPED, 0)])
def test_that_nothing_is_left_to_train_on_is_said(context, monkeypatch, dropped, lines):
    said = []
    monkeypatch.setattr("flows.exporting.say", said.append)
    monkeypatch.setitem(globals(), "DROPPED", dropped)
    exports = exported(context, "trl_jsonl")
    assert len(said) == lines
    assert all("no pair is left to train on" in line for line in said)
    assert exports.filter(split="heldout")["rows"].to_list() == [1]
