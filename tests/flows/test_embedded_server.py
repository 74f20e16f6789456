"""Prefect's embedded server never outlives its run for long, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def test_a_server_that_can_not_start_is_an_error_with_what_it_said(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    workspace.require_writable()
    monkeypatch.setattr(embedded_server, "APPLICATION", "nowhere:app")
    monkeypatch.setattr(embedded_server, "_started", [])
    for name in ("PREFECT_API_URL", EMBEDDED_SERVER):
        monkeypatch.setenv(name, "")
    embedded_server.start(workspace)
    with pytest.raises(EndpointError, match='Could not import module "nowhere"') as caught:
        embedded_server.wait()
    assert caught.value.where == str(workspace.prefect_home / "server.log")
