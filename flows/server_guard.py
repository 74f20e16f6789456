"""A small process between prefmill and a server that it started: the server never outlives it.

`python server_guard.py PARENT_PID COMMAND...` leads a session of its own, so that Ctrl-C in the
terminal doesn't reach it, and runs the command in it. It ends the whole session when the command
ends, when it is asked to (SIGTERM), or when its parent is gone, be it by SIGKILL. The parent's
death is seen by polling: Linux's parent-death signal comes when the *thread* that forked ends, and
Prefect runs tasks in threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

POLL_SECONDS = 0.25
GRACE_SECONDS = 10.0
"""What a server gets to end by itself before it is killed."""
MAX_TEMPORARY_PATH = 40
"""vLLM puts Unix sockets below, whose whole paths may have 107 characters."""


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Return the guard of a server that runs ``command`` and says everything into ``log``."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-P", __file__, str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(started: subprocess.Popen[bytes]) -> None:
    """Stop a guard's server and everything that it started; return when it is gone."""
    started.terminate()
    try:
        started.wait(GRACE_SECONDS + 5)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
    end_session(started.pid, grace_seconds=0)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def guard(parent: int, command: list[str]) -> int:
    """Return the exit status of ``command``, run until it ends or nobody wants it any more.

    As in a shell, 128 + N says that signal N killed it. Its temporary files go into a folder that
    is removed with it: vLLM leaves its sockets behind.
    """
    wanted = True

    def stop(_number: int, _frame: object) -> None:
        nonlocal wanted
        wanted = False

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="prefmill-server-",
        dir=usual if len(usual) <= MAX_TEMPORARY_PATH else "/tmp",  # noqa: S108 - mkdtemp is safe
        ignore_cleanup_errors=True,
    ) as scratch:
        server = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": scratch}, stdin=subprocess.DEVNULL
        )
        while wanted and os.getppid() == parent and server.poll() is None:
            time.sleep(POLL_SECONDS)
        end_session(os.getpid())
        status = server.wait()
    return 128 - status if status < 0 else status


def end_session(leader: int, grace_seconds: float = GRACE_SECONDS) -> None:
    """End every process of the session but this one: first asked to, then killed."""
    deadline = time.monotonic() + grace_seconds
    number = signal.SIGTERM
    while members := session_members(leader):
        for process in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        # Asked once and again killed until gone: one that is just being forked is found later.
        while session_members(leader) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        number, deadline = signal.SIGKILL, time.monotonic() + POLL_SECONDS


def session_members(leader: int) -> list[int]:
    """Return the living processes of the session that ``leader`` leads or led, without this one."""
    import psutil

    found = []
    for number in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            mine = number != os.getpid() and os.getsid(number) == leader
            if mine and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                found.append(number)
    return found


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
