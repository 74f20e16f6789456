"""Whether untrusted code passes its tests, found out in a limited process of its own.

A seat belt and not a jail: limits on time, memory, processes and file size by the kernel, no
network by the kernel where a user may make namespaces, and an audit hook that refuses sockets,
processes and foreign files. Code written to break out of a Python process can. Run what you would
not trust at all inside a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from stages.answer_text import one_line

CHILD = Path(__file__).with_name("code_sandbox_child.py")
MAX_FILE_BYTES = 1_000_000
MAX_REPORT_BYTES = 200_000


class Job(NamedTuple):
    """Code, its tests and the limits."""

    code: str
    tests: tuple[str, ...]
    setup: str = ""
    timeout_seconds: float = 10.0
    memory_mb: int = 512


class Outcome(NamedTuple):
    """How many of the tests passed; None when the sandbox itself did not start."""

    passed: int | None
    problem: str
    """The first one, in one line; "" when all passed."""


def run_tests(job: Job) -> Outcome:
    """Return which tests pass. Ends within ``timeout_seconds``, whatever the code does."""
    folder = tempfile.mkdtemp(prefix="prefmill-code-")
    try:
        return _run(job, folder)
    except OSError as error:
        return Outcome(None, f"the sandbox could not run: {one_line(str(error))}")
    finally:
        # Not shutil: folders nested too deeply for it are easily made.
        remove = [shutil.which("rm") or "/bin/rm", "-rf", "--", folder]
        subprocess.run(remove, check=False, stderr=subprocess.DEVNULL)


def _run(job: Job, folder: str) -> Outcome:
    nonce = secrets.token_hex(8)
    work = {
        "nonce": nonce,
        "code": job.code,
        "setup": job.setup,
        "tests": job.tests,
        # The time on the clock ends the code first; this ends it when we are killed.
        "cpu_seconds": math.ceil(job.timeout_seconds) + 1,
        "memory_bytes": job.memory_mb * 2**20,
        "file_bytes": MAX_FILE_BYTES,
    }
    # No -I: it would ignore PYTHONHASHSEED, and the same code would get other verdicts.
    command = [*_no_network(), sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", str(CHILD)]
    environment = {"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder}
    with tempfile.TemporaryFile() as report:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        timed_out = False
        try:
            child.communicate(json.dumps(work).encode(), timeout=job.timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        report.seek(0)
        lines = report.read(MAX_REPORT_BYTES).decode("utf-8", "replace").splitlines()
    ended = f"no end within {job.timeout_seconds:g} s" if timed_out else _ending(child.returncode)
    return _outcome(_told(lines, nonce), len(job.tests), ended)


def _told(lines: list[str], nonce: str) -> dict[int, str]:
    """Return the report's problems by test; 0 is the code itself, -1 the start."""
    told: dict[int, str] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            of, place, problem = json.loads(line)
            if of == nonce:
                told.setdefault(int(place), str(problem))
    return told


def _outcome(told: dict[int, str], tests: int, ended: str) -> Outcome:
    if -1 not in told:
        return Outcome(None, f"the sandbox did not start: {ended}")
    if told.get(0, ended):
        return Outcome(0, one_line(f"the code: {told.get(0, ended)}", 200))
    problems = {place: told.get(place, ended) for place in range(1, tests + 1)}
    failed = [place for place, problem in problems.items() if problem]
    first = f"test {failed[0]}: {problems[failed[0]]}" if failed else ""
    return Outcome(tests - len(failed), one_line(first, 200))


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended early with exit status {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


@functools.cache
def _no_network() -> tuple[str, ...]:
    """Return the command that runs another without network, or nothing where that isn't allowed.

    The process namespace lets nothing that the code started outlive it.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    flags = ["--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
    command = (unshare, *flags)
    probe = [*command, sys.executable, "-S", "-c", ""]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if not subprocess.run(probe, check=False, capture_output=True, timeout=10).returncode:
            return command
    return ()


def network_is_cut_off() -> bool:
    """Return whether the kernel keeps the code from the network, and not only the audit hook."""
    return bool(_no_network())
