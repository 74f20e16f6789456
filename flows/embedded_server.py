"""Prefect's server for one command: it starts while the command imports, and ends with it.

Prefect would bring one by itself, but in the command's own process group, and unguarded. Ctrl-C
would end both at once, and the command then wait for a server that is gone; a command that is
killed would leave it behind. What it says goes to `WORKSPACE/prefect/server.log`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from flows import server_guard
from flows.interruption import ignore_signals, is_asked
from flows.progress import say
from flows.service import wait_until_healthy
from lineage.workspace import exclusive_lock
from stages.secret_blocks import EMBEDDED_SERVER

if TYPE_CHECKING:
    import subprocess

    from lineage.workspace import Workspace

APPLICATION = "prefect.server.api.server:create_app"
MAX_RESTARTS = 3
OWN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""No UI and no schedules: as Prefect's own temporary server."""
OTHERS = ("UVICORN_", "PREFECT_SERVER_API_")
"""Settings of the user's for servers at other addresses than this one's."""

_servers: list[_Server] = []
"""This process's, one at most."""


def start(workspace: Workspace) -> None:
    """Start the server and have Prefect use it; call before Prefect is imported."""
    say("starting Prefect's embedded server (5 to 30 s) ...")
    server = _Server(workspace.prefect_home)
    _servers.append(server)
    atexit.register(server.stop)  # before Prefect registers its own: those run first
    os.environ["PREFECT_API_URL"] = os.environ[EMBEDDED_SERVER] = server.url


def wait() -> None:
    """Return once the server answers, if one was started.

    Raises:
        EndpointError: it ended, or did not answer in time; with the last lines of its log.
    """
    for server in _servers:
        server.wait()


class _Server:
    """A server that starts on a port of this machine; one that dies does so again."""

    def __init__(self, home: Path) -> None:
        port = server_guard.free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self._log = home / "server.log"
        # Nothing in the working directory takes the place of a module.
        self._command = [sys.executable, "-P", "-m", "uvicorn", "--app-dir", _packages()]
        self._command += ["--factory", APPLICATION, "--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--lifespan", "on", "--log-level", "error"]
        self._stopped = threading.Event()
        self._starting = contextlib.ExitStack()
        # Two that start at once would make the same new database.
        self._starting.enter_context(exclusive_lock(home / "server.lock"))
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._guard = self._spawn()

    def wait(self) -> None:
        with self._starting:
            wait_until_healthy(self.url, self._guard, self._log, self._log_start)
        threading.Thread(target=self._keep_up, name="prefect-server", daemon=True).start()

    def stop(self) -> None:
        ignore_signals()
        self._stopped.set()
        server_guard.stop(self._guard)

    def _spawn(self) -> subprocess.Popen[bytes]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(OTHERS)} | OWN
        return server_guard.start(self._command, own, self._log)

    def _keep_up(self) -> None:
        for _ in range(MAX_RESTARTS):
            self._guard.wait()
            server_guard.end_session(self._guard.pid, grace_seconds=0)  # of a guard that was killed
            if self._stopped.is_set() or is_asked():
                return
            say(f"Prefect's embedded server died: starting it again; log {self._log}")
            self._guard = self._spawn()


def _packages() -> str:
    found = importlib.util.find_spec("prefect")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parents[1])
