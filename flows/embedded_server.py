"""Prefect's server for one command: it starts while the command imports, and ends with it.

Prefect would bring one by itself, but in the command's own process group, and unguarded. Ctrl-C
would end both at once, and the command then wait for a server that is gone; a command that is
killed would leave it behind. What it says goes to `WORKSPACE/prefect/server.log`.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from flows import server_guard
from flows.progress import say
from stages.secret_blocks import EMBEDDED_SERVER

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from lineage.workspace import Workspace

APPLICATION = "prefect.server.api.server:create_app"


class _Started(NamedTuple):
    guard: subprocess.Popen[bytes]
    log: Path


_started: list[_Started] = []


def start(workspace: Workspace) -> None:
    """Start the server and have Prefect use it; call before Prefect is imported.

    It serves no UI and schedules nothing: the same server as Prefect's own temporary one.
    """
    say("starting Prefect's embedded server (5 to 30 s) ...")
    port = server_guard.free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "uvicorn", "--factory", APPLICATION, "--port", str(port)]
    own = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    log = workspace.prefect_home / "server.log"
    guard = server_guard.start([*command, "--log-level", "error"], {**os.environ, **own}, log)
    _started.append(_Started(guard, log))
    atexit.register(server_guard.stop, guard)  # before Prefect's own exit handlers: run after them
    os.environ["PREFECT_API_URL"] = os.environ[EMBEDDED_SERVER] = url


def wait() -> None:
    """Return once the server answers, if one was started.

    Raises:
        EndpointError: it ended, or did not answer in time; with the last lines of its log.
    """
    from flows.service import wait_until_healthy

    for guard, log in _started:
        wait_until_healthy(os.environ["PREFECT_API_URL"], guard, log)
