"""What may pass is tried again, nothing else; dead runs are told from living ones; full disks."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest
from click.testing import CliRunner

from flows import service, stage_task, tracked_run
from flows.cli import cli
from flows.configuration import resolve
from flows.curation import curate
from flows.doctor import examine
from flows.models import find_policy
from flows.progress import told_to
from flows.report_facts import ReportData
from flows.report_numbers import duration, seconds
from flows.report_verdict import verdict
from flows.server_guard import free_port
from flows.service import wait_for_server
from flows.stage_runner import RunContext, StageWriter
from flows.stage_task import StageTask, may_pass
from lineage.liveness import at_work, is_at_work
from lineage.query import query
from lineage.records import list_runs, read_run, run_path, write_run
from lineage.workspace import Workspace, write_part
from stages import errors
from stages.tables import ROUNDS, SCORES
from tests.flows.small import SMALL
from tests.stub_server import Stub


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Draw no reports: they take a second each."""
    monkeypatch.setattr("flows.artifacts.show_run", lambda *_: None)


TRANSIENT = [
    errors.UnreachableError("no server"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError("late"),
    OSError(errno.ESTALE, "a network disk"),
]
LASTING = [
    errors.EndpointError("the key is refused"),
    errors.ConfigError("wrong"),
    errors.DataError("rows"),
    errors.ValidationError("a check"),
    errors.BudgetError("spent"),
    errors.WorkspaceError("full"),
    OSError(errno.ENOSPC, "full"),
    PermissionError(errno.EACCES, "not yours"),
    FileNotFoundError(errno.ENOENT, "gone"),
    RuntimeError("out of memory"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda e: type(e).__name__)
def test_what_may_pass(error):
    assert may_pass(error)


@pytest.mark.parametrize("error", LASTING, ids=lambda e: type(e).__name__)
def test_what_stays_what_it_is(error):
    assert not may_pass(error)


def test_a_stage_is_tried_again_while_its_error_may_pass(prefect_server, monkeypatch, capsys):
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(stage_task, "RETRY_SECONDS", (0.01, 0.02))
    calls: dict[str, int] = {}

    def stage(name: str, ends: list[Exception | None]) -> str:
        calls[name] = calls.get(name, 0) + 1
        if error := ends[calls[name] - 1]:
            raise error
        return "made"

    task = StageTask(stage, "judge")

    @flow
    def passing():
        assert task("soon", [errors.UnreachableError("away"), None]) == "made"
        with pytest.raises(errors.DataError):
            task("never", [errors.DataError("rows"), None])
        with pytest.raises(ConnectionResetError):
            task("always", [ConnectionResetError("reset")] * 3)

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        passing()
    assert calls == {"soon": 2, "never": 1, "always": 3}
    told = capsys.readouterr().err
    assert told.count("judge: tried again after about 0.01 s, then 0.02 s; then the run ends") == 2
    assert told.count("judge: tried again after about 0.02 s; then the run ends") == 1


def a_run(workspace, **changes):
    """Return the record of a run that begins."""
    record = tracked_run.run_record(workspace, "small-refresh-1", "refresh", resolve(SMALL, "here"))
    return replace(record, **changes)


HOLDER = """
import sys, time
from pathlib import Path
from lineage.liveness import at_work
from lineage.workspace import Workspace
with at_work(Workspace(Path(sys.argv[1])), "small-refresh-1"):
    print("at work", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_is_dead_and_a_living_one_is_not(tmp_path):
    workspace = Workspace(tmp_path)
    write_run(workspace, a_run(workspace))
    assert read_run(workspace, "small-refresh-1").status == "dead", "nobody ever was at work"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "at work\n"
    assert read_run(workspace, "small-refresh-1").status == "running"
    with at_work(workspace, "small-refresh-1"):  # two may be at work on the same run
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list_runs(workspace)[0].status == "running"
    assert list_runs(workspace)[0].status == "dead"
    found = {f.subject: f.detail for f in examine(workspace, None)}
    assert "prefmill resume small-refresh-1" in found["run small-refresh-1"]
    said = CliRunner().invoke(cli, ["runs", "-w", str(tmp_path)]).output
    assert "small-refresh-1 died: `prefmill resume small-refresh-1` goes on with it" in said


def test_two_that_look_at_once_do_not_take_each_other_for_the_run(tmp_path):
    workspace = Workspace(tmp_path)
    with at_work(workspace, "r"):
        pass
    seen = []
    lookers = [
        threading.Thread(target=lambda: seen.extend(is_at_work(workspace, "r") for _ in range(50)))
        for _ in range(4)
    ]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join()
    assert seen == [False] * 200


def test_a_dead_run_is_dead_in_the_lineage_and_its_report(tmp_path):
    workspace = Workspace(tmp_path)
    write_run(workspace, a_run(workspace))
    living = replace(a_run(workspace), run_id="small-refresh-2")
    with tracked_run.recorded(workspace, living):
        tracked_run.publish(workspace)
        statuses = query(workspace, "SELECT run_id, status FROM runs ORDER BY 1").rows()
    assert statuses == [("small-refresh-1", "dead"), ("small-refresh-2", "running")]
    (row,) = query(workspace, "FROM runs WHERE status = 'dead'").to_dicts()
    said = verdict(ReportData(run=row))
    assert (said.state, said.label) == ("failed", "Dead")
    assert "`prefmill resume small-refresh-1`" in dict(said.error)["What to do"]


def test_a_clock_that_jumps_breaks_nothing(tmp_path):
    workspace = Workspace(tmp_path)
    with tracked_run.recorded(workspace, a_run(workspace, started_at="2099-01-01T00:00:00+00:00")):
        pass
    run = read_run(workspace, "small-refresh-1")
    assert (run.status, run.ended_at) == ("completed", "2099-01-01T00:00:00+00:00")
    (row,) = query(workspace, "FROM runs").to_dicts()
    assert duration(row) == seconds(0)
    assert duration({**row, "ended_at": row["ended_at"].replace(year=2020)}) == seconds(0)
    found = {f.subject: f.detail for f in examine(workspace, None)}
    assert "a clock was wrong" in found["run small-refresh-1"]


def test_a_full_disk_leaves_nothing_half_written_and_says_what_is_needed(tmp_path):
    workspace, frame = Workspace(tmp_path), SCORES.empty()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # bytes of the largest file
    try:
        with pytest.raises(errors.WorkspaceError) as caught:
            write_part(workspace, SCORES, "key", 0, frame, {"run": "r" * 600})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "part-00000.parquet could not be written: File too large" in str(caught.value)
    assert "MB are free on that disk" in str(caught.value)
    assert str(tmp_path / "store" / "scores") in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    part = write_part(workspace, ROUNDS, "key", 0, ROUNDS.empty(), {})
    assert (tmp_path / part.path).is_file()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/mnt/data/journal.jsonl"),
        RuntimeError("could not write: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_anywhere_in_a_run_is_told_with_what_to_do(tmp_path, error):
    workspace = Workspace(tmp_path)
    with (
        pytest.raises(errors.WorkspaceError, match="are free on that disk"),
        tracked_run.recorded(workspace, a_run(workspace)),
    ):
        raise error
    run = read_run(workspace, "small-refresh-1")
    assert run.status == "failed"
    assert "No space left on device" in run.error
    assert "start the same command again" in run.error


def test_a_run_that_cannot_even_note_its_failure_is_dead_not_running(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fails():
        with tracked_run.recorded(workspace, a_run(workspace)):
            monkeypatch.setattr(tracked_run, "write_run", full)
            raise errors.DataError("rows")

    with pytest.raises(errors.DataError, match="rows"):
        fails()
    assert '"running"' in run_path(workspace, "small-refresh-1").read_text()
    assert read_run(workspace, "small-refresh-1").status == "dead"


def test_a_server_that_comes_up_late_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    may_stop, port = threading.Event(), free_port()

    def serve():
        with ThreadingHTTPServer(("127.0.0.1", port), Healthy) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            may_stop.wait(30)
            server.shutdown()

    def told(text):
        said.append(text)
        threading.Thread(target=serve, daemon=True).start()  # only now, that it is waited for

    said: list[str] = []
    with told_to(told):
        wait_for_server(f"http://127.0.0.1:{port}/api", 30)
    may_stop.set()
    assert said == [
        f"waiting for Prefect's server at http://127.0.0.1:{port}/api, 30 s at most ..."
    ]
    with pytest.raises(errors.UnreachableError, match="unset PREFECT_API_URL") as caught:
        wait_for_server("http://me:s3cret@127.0.0.1:9/api", 0.01)
    assert "s3cret" not in str(caught.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "column", "asked"),
    [("prompts", "split", (False, False)), ("candidates", "finish_reason", (True, False))],
)
def test_a_broken_must_stops_before_the_next_stage_asks_for_money(
    tmp_path, monkeypatch, table, column, asked
):
    write = StageWriter.write

    def breaking(writer, name, frame, index=0):
        broken = frame.with_columns(pl.lit("nonsense").alias(column)) if name == table else frame
        return write(writer, name, broken, index)

    monkeypatch.setattr(StageWriter, "write", breaking)
    with Stub() as generator, Stub() as judge:
        served = [
            {"model": s.model, "endpoint": {"base_urls": [s.url]}} for s in (generator, judge)
        ]
        judged = {"kind": "judge", "name": "judge", "rubric": "helpfulness", **served[1]}
        sections = {
            "name": "t",
            "prompts": {"sources": [{"kind": "bundled", "train": 4, "heldout": 2}]},
            "generation": {"generators": [{"engine": "openai", **served[0]}]},
            "scoring": {"scorers": [judged]},
            "pairing": {"scorer": "judge"},
        }
        context = RunContext(Workspace(tmp_path), "r")
        with pytest.raises(errors.ValidationError, match=column):
            curate(context, resolve(sections, "here"), find_policy("bundled"))
        assert (bool(generator.asked), bool(judge.asked)) == asked
