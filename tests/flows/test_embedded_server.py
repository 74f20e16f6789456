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

from flows.interruption import ORDERLY_END_SECONDS
from flows.settings import EMBEDDED_SERVER
from lineage.records import list_runs
from lineage.workspace import Workspace
from tests.flows.small import SMALL

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def servers(workspace: Path) -> list[int]:
    """Process ids of the embedded servers whose state lies in the workspace."""
    home, found = str((workspace / "prefect").resolve()), []
    for process in psutil.process_iter():
        try:
            if EMBEDDED_SERVER in process.cmdline() and process.environ()["PREFECT_HOME"] == home:
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
    assert len(servers(workspace)) == 1, "nobody can stop it at that moment"

    assert start(config, workspace).wait(120) == 0, (tmp_path / "run.log").read_text()
    assert "| INFO" not in (tmp_path / "run.log").read_text(), "Prefect's own log lines"
    wait_until(lambda: not servers(workspace), 20)


def test_a_run_that_is_terminated_with_its_server_ends_soon_and_is_recorded(tmp_path):
    """As `timeout` and systemd do: the signal reaches all processes at once."""
    workspace, config = tmp_path / "workspace", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    run = start(config, workspace, start_new_session=True)
    wait_until(lambda: list((workspace / "store").rglob("part-*.parquet")))
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(ORDERLY_END_SECONDS + 20) == 130
    said = (tmp_path / "run.log").read_text()
    assert "interrupted: nothing finished is lost" in said
    assert "Traceback" not in said
    (recorded,) = list_runs(Workspace(workspace))
    assert recorded.status == "failed"
