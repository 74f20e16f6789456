"""Prefect's embedded server never outlives its run for long, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from flows import embedded_server
from flows.interruption import ORDERLY_END_SECONDS
from lineage.records import list_runs
from lineage.workspace import Workspace
from stages.errors import EndpointError
from stages.secret_blocks import EMBEDDED_SERVER
from tests.flows.small import SMALL

ROOT = Path(__file__).parents[2]


def servers(workspace: Path) -> list[int]:
    """Process ids of the embedded servers whose state lies in the workspace."""
    home, found = str((workspace / "prefect").resolve()), []
    for process in psutil.process_iter():
        try:
            is_server = embedded_server.APPLICATION in process.cmdline()
            if is_server and process.environ()["PREFECT_HOME"] == home:
                found.append(process.pid)
        except (psutil.Error, KeyError):
            continue
    return found


def start(config: Path, workspace: Path, **how: object) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.cli", "refresh", "-c", config, "-w", workspace]
    log = (workspace.parent / "run.log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=kept, stdout=log, stderr=log, **how)


def wait_until(true, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_terminated_killed_and_finished_runs_leave_no_server(tmp_path):
    workspace, config = tmp_path / "workspace", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    parts = (workspace / "store").rglob

    terminated = start(config, workspace)
    wait_until(lambda: list(parts("part-*.parquet")))
    assert servers(workspace)
    terminated.send_signal(signal.SIGTERM)
    assert terminated.wait(60) == 130
    wait_until(lambda: not servers(workspace), 20)

    killed = start(config, workspace)
    wait_until(lambda: servers(workspace))
    killed.kill()
    killed.wait()
    wait_until(lambda: not servers(workspace), 20)

    assert start(config, workspace).wait(120) == 0, (tmp_path / "run.log").read_text()
    assert "| INFO" not in (tmp_path / "run.log").read_text(), "Prefect's own log lines"
    wait_until(lambda: not servers(workspace), 20)


@pytest.mark.slow
def test_a_signal_to_the_process_group_leaves_the_server_its_orderly_end(tmp_path):
    """As Ctrl-C in a terminal sends it."""
    workspace, config = tmp_path / "workspace", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    run = start(config, workspace, start_new_session=True)
    wait_until(lambda: list((workspace / "store").rglob("part-*.parquet")))
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(ORDERLY_END_SECONDS + 20) == 130
    said = (tmp_path / "run.log").read_text()
    assert said.endswith("\ninterrupted: nothing finished is lost; the same command continues\n")
    assert "ERROR" not in said
    assert not servers(workspace)
    (recorded,) = list_runs(Workspace(workspace))
    assert recorded.status == "failed"


@pytest.mark.slow
def test_a_run_whose_server_is_terminated_too_ends_soon_and_is_recorded(tmp_path):
    """As systemd stops a unit: the signal reaches all its processes."""
    workspace, config = tmp_path / "workspace", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    run = start(config, workspace)
    wait_until(lambda: list((workspace / "store").rglob("part-*.parquet")))
    for process in (*psutil.Process(run.pid).children(recursive=True), run):
        process.send_signal(signal.SIGTERM)
    assert run.wait(ORDERLY_END_SECONDS + 20) == 130
    said = (tmp_path / "run.log").read_text()
    assert "interrupted: nothing finished is lost" in said
    assert "Traceback" not in said
    (recorded,) = list_runs(Workspace(workspace))
    assert recorded.status == "failed"


@pytest.fixture
def own(monkeypatch):
    """The module without the servers of other tests, and the environment without theirs."""
    monkeypatch.setattr(embedded_server, "_servers", [])
    monkeypatch.setattr("atexit.register", lambda *_: None)
    monkeypatch.setattr("flows.embedded_server.ignore_signals", lambda: None)
    for name in ("PREFECT_API_URL", EMBEDDED_SERVER):
        monkeypatch.setenv(name, "")
    yield embedded_server
    for server in embedded_server._servers:
        server.stop()


def test_a_server_that_can_not_start_is_an_error_with_what_it_said(own, tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    workspace.require_writable()
    log = workspace.prefect_home / "server.log"
    log.write_text("last week: no space left on device\n")
    monkeypatch.setattr(own, "APPLICATION", "nowhere:app")
    own.start(workspace)
    with pytest.raises(EndpointError, match='Could not import module "nowhere"') as caught:
        own.wait()
    assert caught.value.where == str(log)
    assert "last week" not in str(caught.value)


STAND_IN = """
import os
from pathlib import Path

Path(os.environ["STARTS"], f"{os.getpid()}").touch()

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"true"})

def create():
    return application
"""


def test_a_server_that_dies_is_started_again_whatever_lies_in_the_folder(
    own, tmp_path, monkeypatch
):
    """The stand-in answers at once; Prefect's own takes ten seconds for each start."""
    workspace, starts, packages = Workspace(tmp_path / "w"), tmp_path / "starts", tmp_path / "p"
    workspace.require_writable()
    for folder in (starts, packages, tmp_path / "here"):
        folder.mkdir()
    (packages / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "here" / "queue.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("STARTS", str(starts))
    monkeypatch.setenv("UVICORN_HOST", "127.0.0.2")
    monkeypatch.setattr(own, "APPLICATION", "stand_in:create")
    monkeypatch.setattr(own, "_packages", lambda: str(packages))
    own.start(workspace)
    own.wait()
    (first,) = starts.iterdir()
    psutil.Process(int(first.name)).kill()
    wait_until(lambda: len(list(starts.iterdir())) == 2, 30)
    url = f"{os.environ['PREFECT_API_URL']}/health"
    wait_until(lambda: answers(url), 30)
    (server,) = own._servers
    server.stop()
    assert not [path for path in starts.iterdir() if psutil.pid_exists(int(path.name))]


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_two_commands_may_make_the_database_of_a_new_workspace_at_once(tmp_path):
    workspace, config = tmp_path / "workspace", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    both = [start(config, workspace) for _ in range(2)]
    assert [run.wait(200) for run in both] == [0, 0], (tmp_path / "run.log").read_text()
