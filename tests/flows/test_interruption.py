"""A command that is asked to stop stops, whatever a library does with the exception."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.settings import EMBEDDED_SERVER, PARENT, stop_orphaned_servers
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
import subprocess, sys, time
from flows import interruption
from flows.settings import EMBEDDED_SERVER

interruption.ORDERLY_END_SECONDS = 0.1
interruption.of_command()
wait = [sys.executable, "-c", "import time; time.sleep(60)"]
server, other = (subprocess.Popen([*wait, name]) for name in (EMBEDDED_SERVER, "other"))
print(server.pid, other.pid, flush=True)
interruption.end_soon()
time.sleep(60)
"""


def test_a_command_that_hangs_is_ended_and_its_server_too():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = subprocess.Popen(
        [sys.executable, "-c", HANGING], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    server, other = map(psutil.Process, map(int, command.stdout.readline().split()))
    command.stdout.close()
    try:
        assert command.wait(30) == 130
        server.wait(10)
        assert other.is_running(), "what it runs besides has guards of its own"
    finally:
        other.kill()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_that_was_dropped_stops_the_run_at_its_next_part(name, tmp_path):
    command = [sys.executable, "-c", RUN, name, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Exception ignored in" in ran.stderr
    assert ran.stdout.splitlines() == ["begun", "went on", "stopped"], ran.stderr
    assert ran.stderr.splitlines()[-1] == "KeyboardInterrupt", "nor does another stage begin"
    (recorded,) = list_runs(Workspace(tmp_path))
    assert (recorded.status, recorded.error) == ("failed", "KeyboardInterrupt: ")


class Server:
    """A process as `psutil` shows it."""

    def __init__(self, parent, started_by, home, command=EMBEDDED_SERVER):
        self.ppid, self.cmdline = lambda: parent, lambda: ["uvicorn", command]
        self.environ = lambda: {"PREFECT_HOME": str(home), PARENT: str(started_by)}
        self.stopped = False

    def terminate(self):
        self.stopped = True


def test_a_server_whose_parent_is_gone_is_stopped_whoever_took_it_in(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    home = workspace.prefect_home.resolve()
    orphans = [Server(1, 50, home), Server(900, 50, home)]
    others = [
        Server(50, 50, home),
        Server(1, 1, home),
        Server(1, 50, "/x"),
        Server(1, 50, home, "y"),
    ]
    monkeypatch.setattr("psutil.process_iter", lambda: [*orphans, *others])
    assert stop_orphaned_servers(workspace) == 2
    assert [server.stopped for server in (*orphans, *others)] == [True] * 2 + [False] * 4
