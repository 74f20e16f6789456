"""A command that is asked to stop stops, whatever a library does with the exception."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lineage.records import list_runs
from lineage.workspace import Workspace

ROOT = Path(__file__).parents[2]

RUN = """
import os, signal, sys
from pathlib import Path
from prefect.utilities.engine import capture_sigterm  # what each flow is run in
from flows.interruption import of_command
from flows.progress import stage_progress
from flows.tracked_run import recorded
from lineage.records import RunRecord
from lineage.workspace import Workspace

class Dropped:
    def __del__(self):  # Python drops what is raised here
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        for _ in range(100):
            pass

def work():
    with stage_progress("generate") as advance:
        print("begun")
        advance(1, 3)
        Dropped()
        print("went on")
        advance(2, 3)
        print("never here")

of_command()
run = RunRecord("run-1", "refresh", "a", 0, {}, "1", "running", "2026-01-01T00:00:00+00:00")
try:
    with capture_sigterm(), recorded(Workspace(Path(sys.argv[2])), run, shown=False):
        work()
except KeyboardInterrupt:
    print("stopped")
with stage_progress("the next"):
    print("never here")
"""


HANGING = """
import os, signal, sys, time
from pathlib import Path
import psutil
from flows import embedded_server, interruption
from lineage.workspace import Workspace

workspace = Workspace(Path(sys.argv[1]))
workspace.require_writable()
embedded_server.APPLICATION = "http.server:BaseHTTPRequestHandler"  # it need not answer
embedded_server.start(workspace)
while len(started := psutil.Process().children(recursive=True)) < 2:  # the guard and the server
    time.sleep(0.05)
print(*(process.pid for process in started), flush=True)
interruption.ORDERLY_END_SECONDS = 0.1
interruption.of_command()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""


def test_a_command_that_hangs_is_ended_and_its_server_too(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = subprocess.Popen(
        [sys.executable, "-c", HANGING, tmp_path],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
    )
    started = [psutil.Process(int(pid)) for pid in command.stdout.readline().split()]
    command.stdout.close()
    assert command.wait(30) == 130
    assert not psutil.wait_procs(started, timeout=10)[1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_that_was_dropped_stops_the_run_at_its_next_part(name, tmp_path):
    command = [sys.executable, "-c", RUN, name, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Exception ignored in" in ran.stderr
    assert ran.stdout.splitlines() == ["begun", "went on", "stopped"], ran.stderr
    assert ran.stderr.splitlines()[-1] == "KeyboardInterrupt", "nor does another stage begin"
    (recorded,) = list_runs(Workspace(tmp_path))
    assert (recorded.status, recorded.error) == ("failed", "KeyboardInterrupt: ")
