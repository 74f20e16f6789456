"""A Prefect server, its work pool and a worker, started for a workspace, and stopped again.

What they say goes to `WORKSPACE/prefect-server/server.log` and `worker.log`; which they are stands
in `service.json` beside. Each holds a lock, which the kernel releases when it dies: neither a clock
that jumps, a reboot, nor a pid that another process got since is mistaken for it. Commands on that
workspace use a service that is up.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flows import alerts
from flows.prefect_requests import asked
from flows.progress import say, stage_progress
from lineage.liveness import is_locked
from lineage.workspace import commit_json
from stages.errors import ConfigError, EndpointError, MissingFileError, UnreachableError
from stages.secret_values import without_secrets

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace

POOL = "prefmill"
CREATE_POOL = ["work-pool", "create", POOL, "--type", "process", "--overwrite"]
SERVE_POOL = ["worker", "start", "--pool", POOL]
GPU_QUEUE = "gpu"
"""The queue of the deployments that generate or train: one run at a time."""
START_SECONDS = 180.0
LOOK_SECONDS = 0.5
STOP_SECONDS = 60.0
"""What the worker gets to stop its runs before it is killed."""
WAIT_SECONDS = 120.0
"""For a server that is named and does not answer: it may be starting."""
LOG_LINES = 15


@dataclass(frozen=True)
class Service:
    """Processes that were started; pids are used again, so that `_alive` is asked as well."""

    url: str
    server_pid: int
    worker_pid: int

    @property
    def ui(self) -> str:
        """Where a person looks at it."""
        return self.url.removesuffix("/api")


def home(workspace: Workspace) -> Path:
    """Return the folder of the server's database and logs."""
    return workspace.root.resolve() / "prefect-server"


def running(workspace: Workspace) -> Service | None:
    """Return the workspace's service if both of its processes are alive."""
    alive = _alive(workspace, "server") and _alive(workspace, "worker")
    return _recorded(workspace) if alive else None


def _recorded(workspace: Workspace) -> Service | None:
    try:
        return Service(**json.loads((home(workspace) / "service.json").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def start(
    workspace: Workspace, deployments: Path, port: int, alert_webhook: str | None = None
) -> Service:
    """Return the running service, with every deployment of the file ``deployments``.

    One that is up is kept, and what it deploys is brought up to date. Alerts go to the address
    ``alert_webhook``; None leaves them as they are.

    Raises:
        MissingFileError: the file is not there.
        ConfigError: a schedule or a deployment in it can't work, the port is taken, or a process
            of this workspace that is on no record runs.
        EndpointError: a process ended or did not answer in time; its last lines are shown.
    """
    check_deployments(deployments)
    workspace.require_writable()
    home(workspace).mkdir(parents=True, exist_ok=True)
    service = running(workspace)
    if service is None:
        stop(workspace)
        service = _start(workspace, port, deployments, alert_webhook)
    else:
        say(f"the service is up already: {service.ui}")
        with stage_progress("deploy"):
            _deploy(_environment(workspace, service.url), deployments)
            alerts.set_up(service.url, alert_webhook)
    return service


def _start(
    workspace: Workspace, port: int, deployments: Path, alert_webhook: str | None
) -> Service:
    _require_none_alive(workspace)
    _require_free(port)
    url = f"http://127.0.0.1:{port}/api"
    environment = _environment(workspace, url)
    arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    processes = [_detached(workspace, "server", arguments, environment)]
    try:
        with stage_progress("start Prefect's server"):
            wait_until_healthy(url, processes[0], home(workspace) / "server.log")
        with stage_progress("deploy"):
            _prefect(environment, *CREATE_POOL)
            _limit_queue(url)
            _deploy(environment, deployments)
            alerts.set_up(url, alert_webhook)
        processes.append(_detached(workspace, "worker", SERVE_POOL, environment))
        service = Service(url, *(process.pid for process in processes))
        commit_json(home(workspace) / "service.json", asdict(service))
    except BaseException:
        for process in reversed(processes):
            _end(process.pid)
        raise
    return service


def stop(workspace: Workspace) -> bool:
    """Stop the worker, which stops its runs, then the server; return whether any was alive.

    A run that is stopped so goes on when it is started again.
    """
    service = _recorded(workspace)
    if service is None:
        return False
    pids = {"worker": service.worker_pid, "server": service.server_pid}
    alive = [pid for name, pid in pids.items() if _alive(workspace, name)]
    for pid in alive:
        _end(pid)
    (home(workspace) / "service.json").unlink()
    return bool(alive)


def wait_for_server(url: str, seconds: float = WAIT_SECONDS) -> None:
    """Return once a Prefect server answers at ``url``; one that is starting gets its time.

    Raises:
        UnreachableError: none does.
    """
    place, deadline, told = without_secrets(url), time.monotonic() + seconds, False
    while not _answers(url):
        if time.monotonic() >= deadline:
            raise UnreachableError(
                f"Prefect's server does not answer at {place}",
                expected=f"an answer within {seconds:.0f} s",
                where="PREFECT_API_URL",
                remedy="start it and run the command again, or unset PREFECT_API_URL: the command "
                "then brings a server of its own",
            )
        if not told:
            say(f"waiting for Prefect's server at {place}, {seconds:.0f} s at most ...")
            told = True
        time.sleep(LOOK_SECONDS)


def _answers(url: str) -> bool:
    """Return whether a server is there, if only to say that it wants a key."""
    return _status(url) is not None


def _status(url: str) -> int | None:
    """Return the HTTP status of a server's health, or None if none answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as found:  # noqa: S310 - the user's
            status: int = found.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return None


def check_deployments(path: Path) -> list[str]:
    """Return the names of the deployments in a `prefect.yaml` whose schedules and pools can work.

    Raises:
        MissingFileError: there is no such file.
        ConfigError: it is not YAML, deploys nothing, names another work pool or none, or a schedule
            in it can't be read.
    """
    import yaml

    if not path.is_file():
        raise MissingFileError(
            f"{str(path)!r} is not there",
            expected="a prefect.yaml",
            where=f"working directory {os.getcwd()}",  # noqa: PTH109 - as the user reads it
            remedy="run it in prefmill's folder, or name a file by --deployments",
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(path)) from None
    deployments = found.get("deployments") if isinstance(found, dict) else None
    if not deployments:
        raise ConfigError("no deployments", expected="a list `deployments`", where=str(path))
    for deployment in deployments if isinstance(deployments, list) else [deployments]:
        if not isinstance(deployment, dict) or not deployment.get("name"):
            raise ConfigError(
                f"a deployment without a name: {str(deployment)[:80]!r}",
                expected="a list of keys and values, `name` among them",
                where=f"{path}, `deployments`",
            )
        where = f"{path}, deployment {deployment['name']!r}"
        named = deployment.get("work_pool")
        pool = named.get("name") if isinstance(named, dict) else named
        if isinstance(named, str):
            pool = f"{named} (a bare name)"
        if pool != POOL:
            raise ConfigError(
                f"work pool {pool!r}: nobody would ever start its runs",
                expected=f"`work_pool: {{name: {POOL}}}`, the one that the worker serves",
                where=where,
            )
        for schedule in deployment.get("schedules") or ():
            _require_schedule(schedule, where)
    return [str(deployment["name"]) for deployment in deployments]


def _require_schedule(schedule: dict[str, Any], where: str) -> None:
    from prefect.client.schemas.schedules import construct_schedule

    timing = {k: v for k, v in schedule.items() if k in {"cron", "interval", "rrule", "timezone"}}
    try:
        construct_schedule(**timing)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"the schedule {timing} can't be read: {error}",
            expected="five cron fields such as '0 2 * * *' and a time zone such as UTC",
            where=where,
        ) from None


def _environment(workspace: Workspace, url: str) -> dict[str, str]:
    from flows.settings import HEARTBEAT, LIBRARIES, PRIVATE, state_in

    return {
        **LIBRARIES,
        **HEARTBEAT,
        **PRIVATE,
        **os.environ,
        "PREFMILL_WORKSPACE": str(workspace.root.resolve()),
        "PREFECT_API_URL": url,
        **state_in(home(workspace)),
    }


def _detached(
    workspace: Workspace, name: str, arguments: list[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Return a `prefect` process that outlives this one and holds the lock ``name``."""
    with (
        (home(workspace) / f"{name}.log").open("wb") as log,
        _lock_path(workspace, name).open("wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def _prefect(environment: dict[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    if done.returncode:
        raise EndpointError(
            f"`prefect {' '.join(arguments)}` failed:\n{(done.stdout + done.stderr).strip()}",
            where=environment["PREFECT_API_URL"],
        )


def _deploy(environment: dict[str, str], deployments: Path) -> None:
    _prefect(environment, "--no-prompt", "deploy", "--all", "--prefect-file", str(deployments))


def _limit_queue(url: str) -> None:
    """Make the queue that runs one at a time, unless it is there (its limit may be the user's)."""
    queue = {"name": GPU_QUEUE, "concurrency_limit": 1}
    asked(url, f"work_pools/{POOL}/queues", queue, may_exist=True)


def wait_until_healthy(
    url: str, server: subprocess.Popen[bytes], log: Path, log_start: int = 0
) -> None:
    """Return once the server that was just started answers that it is well.

    Raises:
        EndpointError: it ended, or did not in time; with the last lines of its ``log``, after the
            bytes before ``log_start``.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        answers = _status(url) == http.HTTPStatus.OK
        if answers and server.poll() is None:  # else another program has its port
            return
        time.sleep(LOOK_SECONDS)
    said = log.read_bytes()[log_start:].decode("utf-8", errors="replace").splitlines()
    raise EndpointError(
        "Prefect's server did not start; it said last:\n"
        + "\n".join(said[-LOG_LINES:] or ["nothing"]),
        expected=f"an answer within {START_SECONDS:.0f} s",
        where=str(log),
    )


def _require_none_alive(workspace: Workspace) -> None:
    """Return if no process is left of a `prefmill up` that was killed before it noted them."""
    for path in (_lock_path(workspace, name) for name in ("server", "worker")):
        if _alive(workspace, path.stem):
            raise ConfigError(
                f"a {path.stem} of this workspace runs that is on no record",
                where=str(path),
                remedy=f"end the process that `fuser {path}` names, then start again",
            )


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(
                f"port {port} is taken by another program",
                expected="a free port",
                remedy="choose one with --port, or use a server that is up by PREFECT_API_URL",
            ) from None


def _lock_path(workspace: Workspace, name: str) -> Path:
    return home(workspace) / f"{name}.lock"


def _alive(workspace: Workspace, name: str) -> bool:
    """Return whether the `server` or `worker` that was started last holds its lock."""
    return is_locked(_lock_path(workspace, name))


def _end(pid: int) -> None:
    """End the session of a process of ours: it is asked to, then killed."""
    from flows.server_guard import end_session

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end_session(pid, STOP_SECONDS)
