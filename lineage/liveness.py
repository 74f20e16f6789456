"""Whether a process is at work on a run: it holds the run's lock.

The kernel releases the lock when the process dies, however it dies, so that neither a pid that
another process got since nor a reboot can be mistaken for a run under way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lineage.workspace import Workspace

DEAD = "dead"
"""The status of a run that is recorded as running and that no process is at work on."""


def _lock_path(workspace: Workspace, run_id: str) -> Path:
    return workspace.runs / run_id / ".at-work"


@contextlib.contextmanager
def at_work(workspace: Workspace, run_id: str) -> Iterator[None]:
    """Be at work on a run; several processes may be, on the same one."""
    path = _lock_path(workspace, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_at_work(workspace: Workspace, run_id: str) -> bool:
    """Return whether any process is at work on the run now; nothing is written."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(workspace.runs, os.O_RDONLY)
            stack.callback(os.close, folder)
            file = stack.enter_context(_lock_path(workspace, run_id).open("rb"))
        except FileNotFoundError:
            return False
        # Two that look at the same moment would take each other's look for a process at work.
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def is_locked(path: Path) -> bool:
    """Return whether a process holds ``path`` exclusively; nothing is written."""
    try:
        with path.open("rb") as lock:
            # Shared: two that look at once do not take each other for the process.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def standing(workspace: Workspace, run_id: str, status: str) -> str:
    """Return a run's recorded status, or DEAD: it says `running` and no process is at work."""
    gone = status == "running" and not is_at_work(workspace, run_id)
    return DEAD if gone else status
