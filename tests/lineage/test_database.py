import json
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from lineage import database
from lineage.database import publish, rebuild
from lineage.ddl import VIEWS
from lineage.query import connect, query
from lineage.records import write_run
from lineage.workspace import Workspace, stage_record_path
from stages.errors import WorkspaceError
from stages.tables import ALL_TABLES, PAIRS
from tests.lineage.small_workspace import (
    DECISIONS_A,
    RUN_A,
    SHARED,
    write_small_workspace,
    write_stage,
    write_stages_of_run,
)

REPOSITORY = Path(__file__).parents[2]


def contents(workspace):
    """Every row of every table and view, as sorted text."""
    connection = connect(workspace)
    try:
        return {
            name: sorted(map(str, connection.execute(f'FROM "{name}"').fetchall()))
            for name in sorted({*ALL_TABLES, *VIEWS})
        }
    finally:
        connection.close()


def start(code, *arguments):
    """A Python process of its own that can import ours; its output is piped."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=60):
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == 0, error
    return out


def test_publish_returns_the_path_and_leaves_nothing_else(workspace):
    assert publish(workspace) == workspace.lineage_database
    names = {path.name for path in workspace.root.iterdir()}
    assert names == {
        "lineage.duckdb", ".lineage.lock", "store", "runs", "exports", "models", "prefect",
    }  # fmt: skip


def test_rebuild_makes_the_same_tables_again(workspace):
    before = contents(workspace)
    assert sum(map(len, before.values())) > 80
    workspace.lineage_database.unlink()
    assert rebuild(workspace).problems == ()
    assert contents(workspace) == before


def test_plain_duckdb_opens_it_from_any_directory(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = workspace.lineage_database
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM pair_quality").fetchall() == [(6,)]
    with duckdb.connect() as connection:
        connection.execute(
            f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS other (READ_ONLY)"
        )
        assert connection.sql("SELECT count(*) FROM other.funnel").fetchall() == [(26,)]


HOLD = """
    import sys, duckdb
    connection = duckdb.connect(sys.argv[1], read_only=True)
    question = "SELECT count(*), (SELECT count(*) FROM pair_quality) FROM runs"
    print(connection.sql(question).fetchall(), flush=True)
    for line in sys.stdin:
        print(connection.sql(question).fetchall(), flush=True)
"""


def test_a_reader_in_another_process_is_undisturbed_by_five_publications(workspace):
    reader = start(HOLD, workspace.lineage_database)
    try:
        assert reader.stdout.readline() == "[(2, 6)]\n"
        for count in range(5):
            (workspace.runs / f"later{count}").mkdir()
            record = json.loads((workspace.runs / "refresh_a1" / "run.json").read_text())
            record["run_id"] = f"later{count}"
            (workspace.runs / f"later{count}" / "run.json").write_text(json.dumps(record))
            publish(workspace)
            assert query(workspace, "SELECT count(*) FROM runs").item() == 3 + count
            reader.stdin.write("again\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "[(2, 6)]\n"
    finally:
        finish(reader)


PUBLISH = """
    import sys
    from pathlib import Path
    from lineage.database import publish
    from lineage.workspace import Workspace
    for _ in range(4):
        publish(Workspace(Path(sys.argv[1])))
"""

READ = """
    import sys, duckdb
    for _ in range(10):
        with duckdb.connect(sys.argv[1], read_only=True) as connection:
            assert connection.sql("SELECT count(*) FROM pair_quality").fetchall() == [(6,)]
"""


def test_concurrent_publishers_and_readers_do_not_fail(workspace):
    before = contents(workspace)
    processes = [start(PUBLISH, workspace.root) for _ in range(3)]
    processes += [start(READ, workspace.lineage_database) for _ in range(2)]
    for process in processes:
        finish(process, timeout=120)
    assert contents(workspace) == before
    assert not list(workspace.root.glob(".lineage.duckdb.*"))


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from lineage import database
    from lineage.workspace import Workspace
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(database, sys.argv[2], kill)
    database.publish(Workspace(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("moment", ["_add_view", "_flush", "commit_rename"])
def test_a_killed_publisher_leaves_the_old_file_and_its_leftovers_go(workspace, moment):
    before = workspace.lineage_database.read_bytes()
    killed = start(KILLED, workspace.root, moment)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert workspace.lineage_database.read_bytes() == before
    assert list(workspace.root.glob(".lineage.duckdb.*"))
    rebuild(workspace)
    assert not list(workspace.root.glob(".lineage.duckdb.*"))


def test_leftover_folders_of_spilled_data_go_too(workspace):
    folder = workspace.root / ".lineage.duckdb.1.tmp.tmp"
    folder.mkdir()
    (folder / "x").write_text("x")
    publish(workspace)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("runs/refresh_a1/run.json", b"{"),
        ("runs/refresh_a1/run.json", b"[]"),
        ("runs/refresh_a1/run.json", b"\xff\x00"),
        ("runs/refresh_a1/run.json", b'{"run_id": "refresh_a1"}'),
        ("runs/refresh_a1/stages/pair.json", b""),
        ("store/stages/k3.json", b"null"),
        ("store/stages/k3.json", b"{}"),
        ("store/pairs/stage_key=k3/part-00000.parquet", b""),
        ("store/pairs/stage_key=k3/part-00000.parquet", b"PAR1 and so on PAR1"),
        ("store/candidates/stage_key=k1/part-00001.parquet", b"PAR1"),
    ],
)
def test_a_broken_file_is_set_aside_and_the_rest_loads(workspace, path, content, caplog):
    (workspace.root / path).write_bytes(content)
    publication = rebuild(workspace)
    assert [problem.path for problem in publication.problems] == [path]
    assert path in caplog.text
    assert query(workspace, "SELECT path FROM store.problems").item() == path
    found = contents(workspace)
    assert len(found["prompts"]) == 4
    assert len(found["decisions"]) == 9
    assert len(found["pairs"]) == (0 if "k3" in path else 3)
    assert len(found["candidates"]) == (6 if "candidates" in path else 9)


def test_a_lost_part_is_set_aside(workspace):
    (workspace.root / "store/pairs/stage_key=k3/part-00000.parquet").unlink()
    (problem,) = rebuild(workspace).problems
    assert "No such file" in problem.problem
    assert query(workspace, "FROM pairs").is_empty()


def test_a_part_of_other_rows_than_recorded_is_set_aside(workspace):
    path = workspace.root / "store/pairs/stage_key=k3/part-00000.parquet"
    pairs = pq.ParquetFile(path).read()
    pq.write_table(pairs.slice(1), path)
    assert [p.problem for p in rebuild(workspace).problems] == ["2 rows, expected 3"]
    pq.write_table(pairs.drop_columns(["margin"]), path)
    assert "different ['margin double']" in rebuild(workspace).problems[0].problem


def with_a_column_of_zeros(path, column):
    """Overwrite the bytes of a column of a part-file."""
    chunk = pq.read_metadata(path).row_group(0).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content, size = bytearray(path.read_bytes()), chunk.total_compressed_size
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


def test_changed_bytes_are_found_when_hashes_are_verified(workspace):
    path = workspace.root / "store/pairs/stage_key=k3/part-00000.parquet"
    with_a_column_of_zeros(path, PAIRS.column_names.index("margin"))
    assert rebuild(workspace).problems == ()
    (problem,) = rebuild(workspace, verify_hashes=True).problems
    assert "SHA-256 differs" in problem.problem


def test_a_part_that_cannot_be_counted_is_set_aside(workspace):
    name = "store/pairs/stage_key=k3/part-00000.parquet"
    with_a_column_of_zeros(workspace.root / name, PAIRS.column_names.index("pair_id"))
    for _ in range(2):
        publish(workspace)
        assert query(workspace, "SELECT path FROM store.problems").item() == name
        assert query(workspace, "FROM pairs").is_empty()
        steps = "SELECT run_id, step FROM funnel WHERE rows > 0 AND split = 'train' ORDER BY ALL"
        reached = ["candidates", "candidates scored", "judgments", "prompts"]
        assert query(workspace, steps).rows() == [
            (run, step) for run in ("dpo_round_b2", "refresh_a1") for step in reached
        ]


def test_a_part_is_looked_at_again_only_when_it_changed(workspace, monkeypatch):
    before, read = contents(workspace), []
    of_footer = pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda path: read.append(path) or of_footer(path))
    publish(workspace)
    assert read == []
    assert contents(workspace) == before
    (write_again,) = (workspace.store / "decisions" / "stage_key=k4").iterdir()
    pq.write_table(pq.ParquetFile(write_again).read().slice(1), write_again)
    publish(workspace)
    assert list(map(str, read)) == [str(write_again)]
    found = query(workspace, "FROM store.problems").rows()
    assert found == [(workspace.relative(write_again), "5 rows, expected 6")]
    assert len(contents(workspace)["decisions"]) == 3
    rebuild(workspace)
    assert len(read) > 10


def test_the_next_publication_equals_a_rebuild(workspace):
    write_stage(workspace, "filter", "k4", {"decisions": DECISIONS_A[:4]})
    write_run(workspace, replace(RUN_A, run_id="refresh_c3"))
    write_stages_of_run(workspace, replace(RUN_A, run_id="refresh_c3"), SHARED)
    publish(workspace)
    found = contents(workspace)
    rebuild(workspace)
    assert found == contents(workspace)
    kept = "SELECT rows FROM funnel WHERE step = 'kept' AND split = 'heldout' AND run_id = ?"
    assert query(workspace, kept, ["refresh_a1"]).item() == 1


def test_a_file_that_is_no_database_is_replaced(workspace):
    before = contents(workspace)
    workspace.lineage_database.write_bytes(b"no database")
    publish(workspace)
    assert contents(workspace) == before


def test_a_record_cannot_point_outside_its_folder(workspace):
    path = stage_record_path(workspace, "k3")
    record = json.loads(path.read_text())
    record["outputs"][0]["parts"][0]["path"] = "store/pairs/stage_key=k3/../../../../x.parquet"
    path.write_text(json.dumps(record))
    (problem,) = rebuild(workspace).problems
    assert "expected a file in store/pairs/stage_key=k3/" in problem.problem


def test_shared_outputs_are_not_counted_twice(workspace):
    write_stages_of_run(workspace, RUN_A, {"prompts": "k0"})
    publish(workspace)
    assert query(workspace, "SELECT count(*) FROM pairs").item() == 3


def test_a_workspace_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(WorkspaceError, match="lineage rebuild"):
        publish(Workspace(blocked / "workspace"))


def test_a_failed_build_leaves_the_old_file(workspace, monkeypatch):
    before = workspace.lineage_database.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database, "_flush", fail)
    with pytest.raises(WorkspaceError, match="No space left"):
        publish(workspace)
    assert workspace.lineage_database.read_bytes() == before


def test_a_relative_workspace_works_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path("relative"))
    write_small_workspace(workspace)
    publish(workspace)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert query(Workspace(tmp_path / "relative"), "FROM pairs").height == 3


def test_a_moved_workspace_is_mended_by_rebuild(workspace, tmp_path):
    before = contents(workspace)
    moved = Workspace(tmp_path / "moved")
    workspace.root.rename(moved.root)
    with pytest.raises(WorkspaceError, match="moved or prefmill upgraded, run `prefmill lineage"):
        query(moved, "FROM pairs")
    rebuild(moved)
    assert contents(moved) == before


def test_a_file_of_an_older_layout_says_what_to_run_and_is_replaced(workspace):
    with duckdb.connect(str(workspace.lineage_database)) as old:
        old.execute("UPDATE store.published SET layout = 1")
        old.execute("DROP TABLE edges")
    with pytest.raises(WorkspaceError, match="run `prefmill lineage rebuild`"):
        query(workspace, "FROM pairs")
    publish(workspace)
    assert not query(workspace, "FROM edges").is_empty()


def test_exports_models_and_pages_are_artifacts(workspace):
    found = query(
        workspace,
        "SELECT kind, stage, made_by, path, rows, sha256, removed_at FROM artifacts "
        "WHERE kind <> 'part' AND stage <> 'report' ORDER BY path",
    )
    assert found.rows() == [
        ("export", "export", "refresh_a1", "exports/k5/train.jsonl", 1, "00", None),
        ("export", "export", "dpo_round_b2", "exports/k7/train.jsonl", 2, "00", None),
    ]
    pages = query(workspace, "SELECT stage_key, path FROM artifacts WHERE kind = 'page'")
    # dpo_round_b2 is running: its pages are not drawn yet.
    assert pages.rows() == [
        ("refresh_a1", "runs/refresh_a1/report.html"),
        ("refresh_a1", "runs/refresh_a1/validations.html"),
    ]


def test_edges_lead_from_inputs_to_outputs_by_content(workspace):
    found = query(
        workspace,
        "SELECT a.from_name, a.stage, a.to_name, b.stage AS stage2, b.to_name AS name2 "
        "FROM edges AS a JOIN edges AS b ON b.from_hash = a.to_hash "
        "WHERE a.from_name = 'prompts'",
    )
    assert sorted(found.rows()) == [
        ("prompts", "generate", "candidates", "judge", "judgments"),
        ("prompts", "generate", "candidates", "score", "scores"),
    ]


def test_a_model_was_made_from_its_export_and_its_policy(written):
    found = query(
        written,
        "SELECT from_kind, from_stage_key IS NOT NULL, from_name, to_kind FROM edges "
        "WHERE to_kind = 'model' ORDER BY from_kind",
    ).rows()
    (path,) = query(
        written, "SELECT path FROM exports WHERE format = 'trl_jsonl' AND split = 'train'"
    )["path"]
    assert found == [
        ("export", True, path, "model"),
        ("model", False, "w0", "model"),
        ("table", True, "exports", "model"),
    ]


def test_every_failure_of_a_stage_is_recorded(workspace):
    from flows.stage_runner import RunContext, StageSpec, run_stage

    spec = StageSpec("score", 1, {}, (), ("scores",))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run_stage(RunContext(workspace, "refresh_a1"), "score", spec, lambda _: 1 / 0)
    publish(workspace)
    rows = query(workspace, "SELECT run_id, stage, stage_key, error FROM stage_errors").rows()
    assert rows == [("refresh_a1", "score", spec.key, "ZeroDivisionError: division by zero")] * 2
    assert (
        query(workspace, "SELECT count(*) FROM stage_runs WHERE stage_key = ?", [spec.key]).item()
        == 0
    )


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from lineage.database import publish
    from lineage.workspace import Workspace
    from stages.errors import WorkspaceError
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        publish(Workspace(Path(sys.argv[1])))
    except WorkspaceError as error:
        print(error)
"""


def test_a_disk_that_fills_up_leaves_the_old_file(workspace):
    before = contents(workspace)
    said = finish(start(FULL_DISK, workspace.root))
    assert "cannot write lineage.duckdb" in said
    assert "prefmill lineage rebuild" in said
    assert contents(workspace) == before
    publish(workspace)
    assert not list(workspace.root.glob(".lineage.duckdb.*"))


def test_publishing_takes_well_under_a_second(workspace):
    seconds = []
    for _ in range(3):
        started = time.process_time()
        rebuild(workspace)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.0
    assert workspace.lineage_database.stat().st_size < 5_000_000
