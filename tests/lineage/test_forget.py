"""A forgotten prompt is nowhere in the workspace, and everything else is as it was."""

import json
import sqlite3
from collections import Counter
from shutil import rmtree

import datasets
import polars as pl
import pytest
from click.testing import CliRunner

from flows.cli import cli
from lineage.database import rebuild
from lineage.erasure import erasure_path, find, forget, models_of, without_erased
from lineage.liveness import at_work
from lineage.query import query
from lineage.workspace import exclusive_lock, write_part
from stages.content_ids import file_sha256
from stages.errors import UnknownIdError, WorkspaceError
from stages.tables import DROPPED_PROMPTS, PAIRS, PROMPTS, TRAININGS, table
from tests.lineage.written_workspace import (
    asked,
    config_of,
    files_that_hold,
    refresh,
    said,
)
from tests.stages.rows import table_of

ZEBRA_3 = [asked("zebra", 3)[:30], said("zebra", 3, "good")[:40], said("zebra", 3, "bad")[:40]]
"""Beginnings without ends of lines, unlike those of other prompts."""


@pytest.fixture
def config(sources):
    return config_of(sources, "zebra")


def prompt_id(written, text):
    rows = query(written, "SELECT prompt_id FROM prompts WHERE messages[1].content = ?", [text])
    return rows["prompt_id"][0]


def plant(written, run_id, wanted):
    """Put words where runs leave them besides tables: pages, logs, journals, records, Prefect."""
    text = asked("zebra", 3)
    folder = written.runs / run_id
    (folder / "report.html").write_text(f"<p>{said('zebra', 3, 'good')[:36]}&hellip;</p>")
    (folder / "old.html").write_text("<p>nothing of it</p>")
    (folder / "errors").mkdir()
    error = {
        "run_id": run_id, "stage": "judge:rules", "failed_at": "2026-11-01T10:00:00+00:00",
        "stage_key": "k", "seconds": 1.0, "error": f"ValueError: cannot read {text[:30]!r}...",
    }  # fmt: skip
    (folder / "errors" / "0.json").write_text(json.dumps(error))
    (written.root / "logs").mkdir()
    (written.root / "logs" / "vllm-1.log").write_text(f"start\nasked {text!r}\nend\n")
    journal = written.store / "journals" / "unfinished" / "00000.jsonl"
    journal.parent.mkdir(parents=True)
    lines = [[wanted, {"text": "other words"}], ["other", {"text": "kept"}], ["j", {"text": text}]]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with sqlite3.connect(written.prefect_home / "prefect.db") as database:
        database.execute("CREATE TABLE log (message VARCHAR)")
        database.executemany("INSERT INTO log VALUES (?)", [(f"said {text}",), ("else",)])
    database.close()


def test_nothing_of_it_is_left_and_all_else_stays(written):
    (round_id,) = query(written, "SELECT round_id FROM rounds")["round_id"]
    wanted = prompt_id(written, asked("zebra", 3))
    plant(written, "run-a", wanted)
    assert len(files_that_hold(written, ZEBRA_3)) > 10
    before = query(written, "SELECT * FROM pair_quality ORDER BY pair_id")

    found = find(written, wanted)
    assert found.runs == ["run-a"]
    assert found.trained_in == [round_id]
    erasure = forget(written, found, "request 17")

    assert files_that_hold(written, [*ZEBRA_3, *found.words.texts]) == set()
    assert erasure.left_in == []
    after = query(written, "SELECT * FROM pair_quality ORDER BY pair_id")
    assert after.equals(before.filter(pl.col("prompt_id") != wanted))
    assert after.height == 5
    (row,) = query(written, "FROM erasures").to_dicts()
    assert (row["reason"], row["rows"]) == ("request 17", found.rows)
    assert json.loads(row["trained_in"]) == [round_id]
    assert "logs/vllm-1.log" in json.loads(row["files"])
    assert wanted not in str(row)
    assert rebuild(written, verify_hashes=True).problems == ()
    journal = written.store / "journals" / "unfinished" / "00000.jsonl"
    assert [json.loads(line)[0] for line in journal.open()] == ["other"]
    assert not (written.runs / "run-a" / "report.html").exists()
    assert (written.root / "logs" / "vllm-1.log").read_text() == "start\nend\n"


def test_the_model_of_a_round_that_never_reached_its_gate_is_named(written):
    (round_id,) = query(written, "SELECT round_id FROM rounds")["round_id"]
    rmtree(written.store / "rounds")
    wanted = prompt_id(written, asked("zebra", 3))
    assert find(written, wanted).trained_in == [round_id]


def test_no_model_is_named_for_a_prompt_that_was_held_out(written):
    """Its pair stands in the held-out file of the very export whose train file was trained on."""
    wanted = prompt_id(written, asked("zebra", 3))
    (pair,) = query(written, "SELECT pair_id FROM pairs WHERE prompt_id = ?", [wanted])["pair_id"]
    heldout = pl.col("split") == "heldout"
    for path in (written.store / "exports").rglob("*.parquet"):
        (other, *_) = pl.read_parquet(path, hive_partitioning=False).filter(heldout)["export_id"]
    for path in (written.store / "export_rows").rglob("*.parquet"):
        rows = pl.read_parquet(path, hive_partitioning=False)
        of_pair = pl.col("pair_id") == pair
        export = pl.when(of_pair).then(pl.lit(other)).otherwise("export_id")
        rows.with_columns(export_id=export).write_parquet(path)
    assert find(written, wanted).trained_in == []
    others = find(written, prompt_id(written, asked("zebra", 2)))
    assert len(others.trained_in) == 1


def test_every_exported_file_is_whole_and_of_the_other_pairs(written):
    wanted = prompt_id(written, asked("zebra", 3))
    forget(written, find(written, wanted))
    exports = query(written, "FROM exports").to_dicts()
    kept = set(query(written, "SELECT pair_id FROM pairs")["pair_id"])
    for export in exports:
        path = written.root / export["path"]
        assert file_sha256(path) == export["sha256"], export["path"]
        lines = query(
            written, "SELECT * FROM export_rows WHERE export_id = ?", [export["export_id"]]
        )
        if not lines.height:
            continue
        assert set(lines["pair_id"]) == kept
        for pair, number in lines.select("pair_id", "line").iter_rows():
            item = items(path)[number - 1]
            assert item.get("pair_id", item.get("id", pair)) in {pair, f"{pair}"}
    (folder,) = {p.parent.parent for p in written.exports.glob("*/hf_dataset/data/*")}
    assert len(datasets.load_dataset(str(folder), split="train", cache_dir=written.root / "c")) == 5


def items(path):
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return [json.loads(line) for line in path.open()]


def test_a_later_run_reuses_the_rest_and_does_not_bring_it_back(written, config, sources):
    wanted = prompt_id(written, asked("zebra", 3))
    forget(written, find(written, wanted))
    stages = "SELECT status, count(*) FROM stage_runs WHERE run_id = ? GROUP BY ALL"
    refresh(written, config, "run-b", "zebra", day=2)
    assert query(written, stages, ["run-b"]).rows() == [("reused", 7)]
    stricter = config_of(sources, "zebra", filters={"minimum_margin": 0.5})
    refresh(written, stricter, "run-c", "zebra", day=3)
    kept = "SELECT count(*) FROM pair_quality WHERE kept GROUP BY run_id"
    assert query(written, kept).rows() == [(5,), (5,), (5,)]
    again = config_of(sources, "zebra", seed=7)
    refresh(written, again, "run-d", "zebra", day=4)
    assert query(written, "SELECT count(*) FROM pair_quality WHERE run_id = 'run-d'").item() == 5
    assert files_that_hold(written, ZEBRA_3) == set()


def test_a_killed_erasure_is_ended_by_the_same_command(written, monkeypatch):
    (round_id,) = query(written, "SELECT round_id FROM rounds")["round_id"]
    wanted = prompt_id(written, asked("zebra", 3))
    for moment in ("_erase_exports", "_correct_exports", "_erase_rows", "_correct_records"):
        with monkeypatch.context() as patch:
            patch.setattr(f"lineage.erasure.{moment}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                forget(written, find(written, wanted))
    found = find(written, wanted)
    assert (found.runs, found.trained_in) == (["run-a"], [round_id])
    assert forget(written, found).trained_in == [round_id]
    assert files_that_hold(written, ZEBRA_3) == set()
    assert rebuild(written, verify_hashes=True).problems == ()
    for path, sha256 in query(written, "SELECT path, sha256 FROM exports").iter_rows():
        assert file_sha256(written.root / path) == sha256
    with pytest.raises(UnknownIdError, match="whole id"):
        find(written, wanted)


def test_what_is_unfinished_is_deleted_and_a_stage_under_way_refuses(written):
    wanted = prompt_id(written, asked("zebra", 3))
    rows = query(written, "SELECT * EXCLUDE (stage_key) FROM pairs WHERE prompt_id = ?", [wanted])
    write_part(written, PAIRS, "killed", 0, rows, {})
    found = find(written, wanted)
    under_way = exclusive_lock(written.store / "locks" / "killed")
    with under_way, pytest.raises(WorkspaceError, match="making stage output killed now"):
        forget(written, found)
    assert not erasure_path(written, wanted).exists()
    forget(written, found)
    assert not list((written.store / "pairs" / "stage_key=killed").iterdir())


def test_a_run_that_has_the_prompt_and_goes_on_refuses(written):
    found = find(written, prompt_id(written, asked("zebra", 3)))
    with at_work(written, found.runs[0]), pytest.raises(WorkspaceError, match="under way with the"):
        forget(written, found)
    assert not erasure_path(written, found.ids.prompt).exists()
    assert find(written, found.ids.prompt).rows == found.rows


@pytest.mark.parametrize("asked_for", ["prompt_unknown", "", "%", "../x"])
def test_an_unknown_prompt_is_refused(written, asked_for):
    with pytest.raises(UnknownIdError, match="no prompt"):
        find(written, asked_for)


def test_erased_prompts_are_passed_over(written):
    frame = table("prompts").empty()
    assert without_erased(written, frame) is frame


def test_texts_that_begin_like_json_are_erased_too(written):
    wanted = prompt_id(written, asked("zebra", 3))
    ((path, _),) = [
        item for item in find(written, wanted).parts.items() if item[0].parts[-3] == "candidates"
    ]
    about = pl.col("prompt_id") == wanted
    text = "{x | x > 0} is a set of positive numbers"
    rows = pl.read_parquet(path, hive_partitioning=False, glob=False)
    rows = rows.with_columns(
        pl.when(about).then(pl.lit(text)).otherwise("completion").alias("completion")
    )
    rows.write_parquet(path)
    found = find(written, wanted)
    assert text in found.words.texts
    forget(written, found)
    assert files_that_hold(written, [*ZEBRA_3, text]) == set()


def test_copies_that_users_made_in_the_workspace_are_named(written):
    wanted = prompt_id(written, asked("zebra", 3))
    query(written, "FROM candidates").write_parquet(written.root / "mine.parquet")
    query(written, "SELECT 1 AS one").write_parquet(written.root / "other.parquet")
    (exported,) = written.exports.glob("*/train.jsonl")
    (written.exports / "copy.jsonl").write_bytes(exported.read_bytes())
    erasure = forget(written, find(written, wanted))
    assert erasure.left_in == ["exports/copy.jsonl", "mine.parquet"]


def test_what_was_nearly_the_same_stays_away_too(written, config):
    wanted = prompt_id(written, asked("zebra", 3))
    dropped = table_of(
        DROPPED_PROMPTS,
        [{"prompt_id": "prompt_alike", "kept_prompt_id": wanted, "reason": "near_duplicate"}],
    )
    write_part(written, DROPPED_PROMPTS, "k-dropped", 0, dropped, {})
    found = find(written, wanted)
    assert found.alike == ["prompt_alike"]
    forget(written, found)
    again = table_of(PROMPTS, [{"prompt_id": i, "split": "train"} for i in ("prompt_alike", "new")])
    assert without_erased(written, again)["prompt_id"].to_list() == ["new"]
    assert without_erased(written, dropped).is_empty()


def test_a_training_on_the_file_is_named_after_another_erasure_too(written):
    row = query(written, "SELECT path, sha256 FROM exports WHERE format = 'trl_jsonl'").row(0)
    training = {"training_id": "training_1", "objective": "sft", "data_path": row[0]}
    training |= {"data_sha256": row[1], "result_path": "/elsewhere/model"}
    write_part(written, TRAININGS, "k-training", 0, table_of(TRAININGS, [training]), {})
    first, second = (prompt_id(written, asked("zebra", number)) for number in (3, 4))
    assert "training_1" in find(written, first).trained_in
    forget(written, find(written, first))
    named = find(written, second).trained_in
    assert models_of(written, named) == [
        "/elsewhere/model" if name == "training_1" else f"models/{name}" for name in named
    ]
    assert "training_1" in named


def test_the_command_says_where_it_is_and_which_source_still_has_it(written):
    wanted = prompt_id(written, asked("zebra", 3))
    (written.checkpoints / "run-0123" / "checkpoint-2").mkdir(parents=True)
    command = ["lineage", "forget", "--prompt", wanted, "--dry-run", "--json", "-w", written.root]
    result = CliRunner().invoke(cli, list(map(str, command)))
    said = json.loads(result.stdout)
    assert (said["runs"], said["sources"], said["dry_run"]) == (["run-a"], ["mine"], True)
    assert said["checkpoints"] == ["checkpoints/run-0123"]
    tables = [path.split("/")[1] for path in said["files"]]
    assert Counter(tables)["candidates"] == 1
    assert {"prompts", "judgments", "scores", "pairs", "decisions", "export_rows"} <= set(tables)
    assert said["rows"] == find(written, wanted).rows
    assert files_that_hold(written, ZEBRA_3)
