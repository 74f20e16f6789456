"""The shipped `prefect.yaml` deploys on a real server, and its cron gets scheduled runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from flows.prefect_requests import asked

ROOT = Path(__file__).parents[2]


def test_refresh_deploys_and_its_cron_gets_scheduled_runs(prefect_server):
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    pool = ["work-pool", "create", "prefmill", "--type", "process"]
    for arguments in (pool, ["--no-prompt", "deploy", "--all"]):
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(  # noqa: PLW1510 - asserted below, with the output
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
    waiting = {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "flows": {"name": {"any_": ["refresh"]}},
    }
    for _ in range(60):
        scheduled = asked(prefect_server, "flow_runs/filter", waiting)
        if scheduled:
            break
        time.sleep(0.5)
    assert scheduled, "the scheduler made no runs"
    assert scheduled[0]["parameters"]["config_file"] == "configs/demo.yaml"
    assert all(run["expected_start_time"][11:16] == "02:00" for run in scheduled)
