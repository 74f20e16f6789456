"""`prefmill up`: a scheduled refresh starts a round by its event, and both are on record."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import yaml

from flows.prefect_requests import asked
from flows.server_guard import free_port
from lineage.query import query
from lineage.records import list_runs
from lineage.workspace import Workspace
from tests.flows.test_deployment import ROOT

SECONDS_UNTIL_PROMOTED = 400


def prefmill(*arguments: object) -> str:
    environment = {**os.environ, "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(  # noqa: PLW1510 - asserted below, with the output
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def minutely(tmp_path, small_config):
    """The shipped deployments, the refresh every minute and on a small configuration."""
    values = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    refresh = values["deployments"][0]
    refresh["schedules"][0]["cron"] = "* * * * *"
    refresh["parameters"]["config_file"] = str(small_config())
    dpo_round = values["deployments"][1]
    dpo_round["parameters"]["changes"] = {"gate": {"force": True}}
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scheduled_refresh_starts_a_round_that_the_gate_judges(tmp_path, minutely):
    workspace, port = Workspace(tmp_path / "workspace"), free_port()
    where, url = ("-w", workspace.root), f"http://127.0.0.1:{port}"
    try:
        prefmill("up", *where, "--port", port, "--deployments", minutely)
        promoted = workspace.models / "small.promoted.json"
        deadline = time.monotonic() + SECONDS_UNTIL_PROMOTED
        while not ended(f"{url}/api") and time.monotonic() < deadline:
            time.sleep(1)
        runs = {run.flow: run for run in list_runs(workspace)}
        log = (workspace.root / "prefect-server" / "worker.log").read_text()
        assert set(runs) == {"refresh", "dpo_round"}, log
        assert {run.status for run in runs.values()} == {"completed"}, log
        (gate,) = query(workspace, "SELECT promoted FROM rounds").rows()
        assert gate[0], "by force at least"
        assert promoted.is_file()
        made, used = (
            query(
                workspace,
                "SELECT stage_key FROM stage_runs WHERE run_id = ? AND stage = 'pair'",
                [runs[flow].run_id],
            )
            for flow in ("refresh", "dpo_round")
        )
        assert made.rows() == used.rows() != []  # the round trained on the refresh's pairs
        states = {
            run["name"]: run["state_type"]
            for run in asked(f"{url}/api", "flow_runs/filter", {})
            if run["deployment_id"] and run["state_type"] == "COMPLETED"
        }
        assert len(states) >= 2
        assert asked(f"{url}/api", "artifacts/filter", {})
    finally:
        prefmill("down", *where)
    assert prefmill("down", *where).strip() == "nothing was running"


def ended(url: str) -> bool:
    """Return whether a run of the deployment `dpo-round` has ended, however."""
    runs = asked(url, "flow_runs/filter", {"flows": {"name": {"any_": ["dpo-round"]}}})
    return any(run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"} for run in runs)
