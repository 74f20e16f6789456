"""Runs untrusted code and its tests, and reports: a script for `stages.code_sandbox`, no module.

It reads its job as JSON from standard input and writes one JSON line per test to standard output,
which the code can't reach by printing. Only the standard library: the interpreter runs without
site-packages. This is a seat belt and not a jail (docs/verifiers.md).
"""

from __future__ import annotations

import _thread
import json
import os
import resource
import sys
import types
import zoneinfo
from typing import Any

SHOWN_CHARACTERS = 200
DENIED = (
    "socket.", "ctypes.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn",
    "os.system", "os.kill", "pty.", "resource.setrlimit",
    "resource.prlimit", "sqlite3.", "os.chroot", "signal.pthread_kill", "syslog.", "urllib.",
)  # fmt: skip
CHANGES = (
    "os.chdir", "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove",
    "os.removexattr", "os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate",
    "os.utime", "shutil.",
)  # fmt: skip
LISTS = ("os.listdir", "os.scandir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def limit(job: dict[str, Any]) -> None:
    """Lower this process's limits for good."""
    seconds, size = job["cpu_seconds"], job["memory_bytes"]
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, size),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)  # noqa: PLW2901
        resource.setrlimit(kind, (value, value))


def guard(folder: str) -> None:  # noqa: C901 - closures: the code can replace what has a name
    """Refuse sockets, processes, threads, and files outside ``folder`` and the standard library."""
    # Bound here: the code can replace the functions in their modules.
    realpath, fsdecode, join = os.path.realpath, os.fsdecode, os.path.join
    inside = (realpath(folder),)
    library = os.path.dirname(os.__file__)  # noqa: PTH120 - what the paths of events are
    readable = (*inside, *map(realpath, (library, *zoneinfo.TZPATH)))

    def require(event: str, path: object, roots: tuple[str, ...]) -> None:
        if path is None or isinstance(path, int):
            return
        full = realpath(fsdecode(path))  # type: ignore[arg-type]
        under = any(full == root or full.startswith(join(root, "")) for root in roots)
        if not under and full not in DEVICES:
            raise PermissionError(f"not allowed here: {event} {fsdecode(path)}")  # type: ignore[arg-type]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(DENIED) or (event == "import" and args[0] == "_ctypes"):
            raise PermissionError(f"not allowed here: {event}")
        if event == "open":
            require(event, args[0], inside if args[2] & WRITING else readable)
        elif event in LISTS:
            require(event, args[0], readable)
        elif event.startswith(CHANGES):
            for path in args:
                if isinstance(path, (str, bytes, os.PathLike)):
                    require(event, path, inside)

    # `subprocess` itself can be imported (asyncio does), but starts nothing.
    stub = types.ModuleType("_posixsubprocess")
    stub.fork_exec = refuse  # type: ignore[attr-defined]
    sys.modules["_posixsubprocess"] = stub
    # Python 3.11 has no audit event for threads, and root no limit on them.
    _thread.start_new_thread = refuse  # type: ignore[assignment]
    sys.addaudithook(hook)


def refuse(*_args: object) -> None:
    """Take the place of what starts a process or thread."""
    raise PermissionError("not allowed here: starting a process or thread")


def attempt(source: str, name: str, space: dict[str, Any]) -> str:
    """Return what went wrong when ``source`` ran in ``space``, or ""."""
    try:
        exec(compile(source, name, "exec", dont_inherit=True), space)  # noqa: S102
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt fail too
        try:
            said = str(error)[:SHOWN_CHARACTERS]
        except BaseException:  # noqa: BLE001 - the class is the code's own
            said = ""
        return f"{type(error).__name__}: {said}".removesuffix(": ")
    return ""


def main() -> None:
    """Run the job's code, then its tests in the same namespace, one report line each."""
    job = json.load(sys.stdin.buffer)
    nonce = job.pop("nonce")
    report, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)

    def tell(place: int, problem: str) -> None:
        os.write(report, json.dumps([nonce, place, problem]).encode() + b"\n")

    limit(job)
    guard(os.getcwd())  # noqa: PTH109 - as above
    tell(-1, "")
    # A real module: dataclasses and pickle look their classes' module up.
    module = types.ModuleType("completion")
    sys.modules["completion"] = module
    space = module.__dict__
    problem = attempt(job["setup"], "setup", space) or attempt(job["code"], "completion", space)
    tell(0, problem)
    for place, test in enumerate(job["tests"], start=1):
        if not problem:
            tell(place, attempt(test, f"test {place}", space))
    os._exit(0)  # what the code left at exit (atexit, __del__) doesn't run


if __name__ == "__main__":
    main()
