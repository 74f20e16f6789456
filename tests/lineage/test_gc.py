"""What `gc` takes, what it leaves, and that nothing that reads the lineage minds."""

import datetime as dt
import json
import os
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner

from flows.cli import cli
from flows.stage_runner import RunContext, StageSpec, run_stage
from lineage.database import rebuild
from lineage.liveness import at_work
from lineage.query import query
from lineage.records import OF_OTHERS, RunRecord, read_run, write_run
from lineage.removal import read_removal
from lineage.retention import Retention, collect, plan
from lineage.workspace import Dataset, write_part
from stages.tables import PROMPTS, table
from tests.lineage.test_database import contents
from tests.lineage.written_workspace import asked, config_of, files_that_hold, refresh, said
from tests.validators.good_rows import good_rows

NOW = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
ZEBRA = [asked("zebra", 3)[:30], said("zebra", 3, "good")[:40]]
LION = [asked("lion", 3)[:30], said("lion", 3, "good")[:40]]


def run(name, day, status="completed", flow="refresh", config="nightly"):
    started = f"2026-11-{day:02d}T00:00:00+00:00"
    ended = None if status == "running" else started
    return RunRecord(name, flow, config, 0, {}, "1", status, started, ended)


RUNS = [
    run("d", 9), run("zombie", 8, "running"), run("c", 7, "failed"), run("b", 5),
    run("other", 4, config="weekly"), run("early", 3, "failed"), run("a", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "days", "gone"),
    [
        (1, None, ["c", "b", "early", "a"]),
        (2, None, ["early", "a"]),
        (3, None, []),
        (None, 14, ["b", "other", "early", "a"]),
        (None, 15.5, ["other", "early", "a"]),
        (2, 18, ["a"]),
        (9, 0, []),
    ],
)
def test_the_newest_completed_of_each_name_are_kept_and_what_was_run_since(keep, days, gone):
    assert [r.run_id for r in Retention(keep, days).old(RUNS, NOW)] == gone


@pytest.fixture
def collected(two_written):
    """`run-a` collected beside a newer run of other texts; what the views said before."""
    written = two_written
    for name in ("checkpoints/run-x", "reference-log-probs/k"):
        (written.root / name).mkdir(parents=True)
        (written.root / name / "file").write_bytes(b"12345")
    before = everything(written)
    planned = plan(written, Retention(keep=1), NOW)
    assert planned.runs == ["run-a"]
    return written, before, planned.bytes, collect(written, planned)


def everything(workspace):
    """Every row of every table and view that does not tell of what was removed."""
    told = {"artifacts", "stage_outputs"}
    return {name: rows for name, rows in contents(workspace).items() if name not in told}


def test_texts_exports_and_models_go_and_the_record_stays(collected):
    workspace, before, forecast, removals = collected
    assert files_that_hold(workspace, ZEBRA) == set()
    # Part-files and both exports of every format, unharmed.
    assert len(files_that_hold(workspace, LION)) > 10
    after = everything(workspace)
    with_words = {"prompts", "candidates", "judgments"}
    assert {name for name in after if after[name] != before[name]} == with_words
    assert {name: len(rows) for name, rows in after.items()} == {
        name: len(rows) for name, rows in before.items()
    }
    assert not list(workspace.models.glob("round_*"))
    judged = query(
        workspace, "SELECT completion, raw FROM candidates JOIN judgments USING (candidate_id)"
    )
    assert Counter(judged.rows())[None, ""] == 12
    assert judged.height == 24
    removed = query(workspace, "FROM artifacts WHERE removed_at IS NOT NULL")
    assert set(removed["kind"]) == {"part", "export", "model"}
    assert removed["sha256"].null_count() == 0
    assert set(removed["made_by"]) == {"run-a"}
    outputs = query(workspace, "SELECT stage FROM stage_outputs WHERE removed_at IS NOT NULL")
    assert set(outputs["stage"]) == {"prompts", "generate", "judge", "export", "train"}
    freed = sum(removal.bytes_freed for removal in removals)
    assert freed > 0
    assert abs(forecast - freed) < 0.1 * freed
    assert rebuild(workspace, verify_hashes=True).problems == ()
    assert everything(workspace) == after
    again = plan(workspace, Retention(keep=1), NOW)
    assert (again.parts, again.files) == ({}, {})
    note = next((workspace.store / "removed").iterdir())
    note.write_text("{")
    assert [p.path for p in rebuild(workspace).problems] == [workspace.relative(note)]


def test_a_removed_run_that_is_started_again_makes_what_it_lacks(collected, sources):
    workspace, before, *_ = collected
    refresh(workspace, config_of(sources, "zebra"), "run-a", "zebra")
    stages = query(workspace, "SELECT stage, status FROM stage_runs WHERE run_id = 'run-a'")
    made = set(stages.filter(status="made")["stage"])
    assert {"prompts", "generate", "judge:rules", "export"} <= made
    assert files_that_hold(workspace, ZEBRA)
    names = ("prompts", "candidates", "judgments", "pair_quality", "funnel", "exports")
    after = everything(workspace)
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert rebuild(workspace, verify_hashes=True).problems == ()


def test_what_a_kept_run_shares_stays_and_a_model_in_use_too(written, sources):
    stricter = config_of(sources, "zebra", filters={"minimum_margin": 0.5})
    refresh(written, stricter, "run-b", "zebra", day=2)
    (model,) = written.models.glob("round_*")
    pointer = {"round_id": model.name, "path": f"models/{model.name}"}
    (written.models / "written.promoted.json").write_text(json.dumps(pointer))
    planned = plan(written, Retention(keep=1), NOW)
    assert planned.parts == {}
    # Only the exports of run-a are its own.
    (paths,) = planned.files.values()
    assert {path.relative_to(written.exports).parts[0] for path in paths} == {paths[0].parent.name}
    collect(written, planned)
    assert files_that_hold(written, ZEBRA)
    assert (model / "model.safetensors").exists()


def test_a_moving_average_goes_once_it_is_old_and_nobody_names_it(two_written):
    written = two_written
    kept = read_run(written, "run-b")
    write_run(written, replace(kept, config={"average_policy": "/w/models/average_named"}))
    pointer = {"round_id": "round_r", "path": "models/round_r", "average": "models/average_last"}
    # A configuration may have such a name too.
    (written.models / "average_it.promoted.json").write_text(json.dumps(pointer))
    series = {"average_policy": "models/average_open"}
    (written.store / "series").mkdir(exist_ok=True)
    (written.store / "series" / "cut_short.json").write_text(json.dumps(series))
    started = dt.datetime.fromisoformat(kept.started_at).timestamp()
    for name in ("old", "named", "last", "open", "new"):
        folder = written.models / f"average_{name}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"12345")
        os.utime(folder, (started, started + (1 if name == "new" else -1)))
    planned = plan(written, Retention(keep=1), NOW)
    assert planned.caches == [written.models / "average_old"]
    caches = collect(written, planned)[-1]
    assert caches.files == {"models/average_old": 5}
    left = {path.name for path in written.models.glob("average_*")}
    assert left == {
        "average_named", "average_last", "average_open", "average_new", "average_it.promoted.json",
    }  # fmt: skip


def test_folders_of_removed_exports_go_too_and_those_of_an_earlier_removal(two_written):
    written = two_written
    (removed,), (kept,) = (
        query(written, f"SELECT export_key FROM run_stages WHERE run_id = '{run}'")["export_key"]
        for run in ("run-a", "run-b")
    )
    collect(written, plan(written, Retention(keep=1), NOW))
    assert [path.name for path in written.exports.iterdir()] == [kept]
    assert list((written.exports / kept).rglob("*.jsonl"))
    (written.exports / removed / "hub").mkdir(parents=True)
    again = plan(written, Retention(keep=1), NOW)
    assert again.files == {removed: [written.exports / removed]}
    collect(written, again)
    assert not (written.exports / removed).exists()
    assert plan(written, Retention(keep=1), NOW).files == {}


@pytest.mark.parametrize("flow", OF_OTHERS)
def test_a_run_of_anothers_candidates_goes_with_that_run(two_written, flow):
    written = two_written
    last = "2026-09-30T00:00:00+00:00"
    swept = replace(read_run(written, "run-a"), run_id="swept", flow=flow, started_at=last)
    write_run(written, swept)
    for path in (written.runs / "run-a" / "stages").glob("*.json"):
        values = {**json.loads(path.read_text()), "run_id": "swept"}
        copy = written.runs / "swept" / "stages" / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(json.dumps(values))
    assert plan(written, Retention(keep=2), NOW).runs == []
    assert set(plan(written, Retention(keep=1), NOW).runs) == {"run-a", "swept"}


def test_a_sweep_under_way_stays_with_the_candidates_that_it_reads(two_written):
    written = two_written
    sweep = replace(read_run(written, "run-a"), run_id="swept", flow="sweep")
    write_run(written, replace(sweep, status="running", ended_at=None))
    stage = written.runs / "run-a" / "stages" / "generate.json"
    if not stage.is_file():
        (stage,) = (written.runs / "run-a" / "stages").glob("*generate*.json")
    values = {**json.loads(stage.read_text()), "run_id": "swept"}
    copy = written.runs / "swept" / "stages" / stage.name
    copy.parent.mkdir()
    copy.write_text(json.dumps(values))
    with at_work(written, "swept"):
        made = plan(written, Retention(keep=1), NOW)
    assert made.runs == ["run-a"]
    assert values["stage_key"] not in made.parts


def test_a_killed_collection_is_gone_on_with(two_written, monkeypatch):
    written = two_written
    retention = Retention(older_than_days=18.5)
    with monkeypatch.context() as patch:
        patch.setattr("lineage.retention.rewrite_part", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect(written, plan(written, retention, NOW))
    half = [read_removal(written, path.stem) for path in (written.store / "removed").iterdir()]
    assert not all(removal.done for removal in half)
    collect(written, plan(written, retention, NOW))
    assert files_that_hold(written, ZEBRA) == set()


def test_the_command_tells_before_it_does(two_written):
    place = ["-w", str(two_written.root)]
    assert CliRunner().invoke(cli, ["lineage", "gc", *place]).exit_code == 2
    command = ["lineage", "gc", "--keep", "1", "--json", *place]
    planned = json.loads(CliRunner().invoke(cli, [*command, "--dry-run"]).stdout)
    assert planned["runs"] == ["run-a"]
    assert files_that_hold(two_written, ZEBRA)
    done = json.loads(CliRunner().invoke(cli, command).stdout)
    assert done["bytes"] == sum(done["files"].values())
    assert abs(done["bytes"] - planned["bytes"]) < 0.1 * done["bytes"]
    assert files_that_hold(two_written, ZEBRA) == set()


def test_parts_made_of_other_rows_are_not_used_again(empty_workspace):
    scores = table("scores")
    for count in (10, 20):
        part = write_part(empty_workspace, PROMPTS, "p", 0, good_rows(PROMPTS, count), {})
        spec = StageSpec("score", 1, {}, (Dataset("prompts", "p", (part,)),), ("scores",))
        made = run_stage(
            RunContext(empty_workspace, "run"),
            "score",
            spec,
            lambda writer, rows=count: writer.write("scores", good_rows(scores, rows)),
        )
        assert made.output("scores").rows == count
