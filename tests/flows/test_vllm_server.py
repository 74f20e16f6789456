"""The managed server, with a script in vLLM's place: it starts, survives, and is never orphaned."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from flows import server_guard, vllm_server
from flows.adapter_requests import Adapter
from flows.server_log import failure_cause
from flows.vllm_server import (
    ManagedServer,
    ServerSpec,
    adapter_rank,
    running_server,
    server_command,
    server_environment,
    stop_all,
)
from stages.errors import ConfigError, MissingFileError, ModelError
from stages.vllm_settings import VllmServerConfig

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture
def python(tmp_path):
    """An "interpreter" that runs the fake server, whatever module it is asked for."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -S {FAKE} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def mark():
    """A model name that stands in the command line of every process of this test's server."""
    yield (name := f"served-{uuid.uuid4().hex}")
    for process in processes(name):
        process.kill()


@pytest.fixture
def spec(python, mark):
    def make(model="good", **settings):
        return ServerSpec(model, mark, VllmServerConfig(python=python, **settings))

    return make


@pytest.fixture
def log(tmp_path):
    yield tmp_path / "logs/server.log"
    stop_all()


@pytest.fixture
def started(log):
    """A started server for a spec, which is this process's."""

    def start(spec):
        url = running_server(spec, log)
        assert url == vllm_server._server.base_url
        return vllm_server._server

    return start


def processes(mark):
    """The guard, the server and the server's child."""
    found = []
    for process in psutil.process_iter():
        try:
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and any(mark in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def server_process(mark):
    """The server itself: neither its guard nor its child."""
    return next(p for p in processes(mark) if str(FAKE) in p.cmdline())


def wait_until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def healthy(base_url):
    try:
        url = base_url.removesuffix("/v1") + "/health"
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def scratch_folders(log):
    return [Path(found) for found in re.findall(r"^scratch (.+)$", log.read_text(), re.MULTILINE)]


def test_a_server_starts_and_stops_with_everything_it_made(spec, mark, log):
    server = ManagedServer(spec(), log)
    server.start()
    assert healthy(server.base_url)
    assert server.alive()
    assert len(processes(mark)) == 3
    (scratch,) = scratch_folders(log)
    assert (scratch / "socket").exists()
    server.stop()
    assert not processes(mark)
    assert not scratch.exists()
    assert not server.alive()
    assert not healthy(server.base_url)
    server.stop()


def test_a_long_temporary_path_is_not_used(spec, log, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    running_server(spec(), log)
    (scratch,) = scratch_folders(log)
    assert len(str(scratch / str(uuid.uuid4()))) <= 107
    stop_all()
    assert not scratch.exists()


def test_a_server_that_does_not_start_shows_its_cause_and_its_log(spec, mark, log):
    with pytest.raises(ModelError, match="ValueError: no such model") as caught:
        running_server(spec("bad"), log)
    assert str(log) in str(caught.value)
    assert not processes(mark)


def test_a_server_that_never_answers_is_given_up(spec, mark, log):
    with pytest.raises(ModelError, match=r"did not answer within 0\.5 s"):
        running_server(spec("deaf", start_timeout_seconds=0.5), log)
    assert not processes(mark)


PARENT = """
import sys
from pathlib import Path
from flows.vllm_server import ServerSpec, running_server
from stages.vllm_settings import VllmServerConfig
python, model, mark, log = sys.argv[1:]
print("starting", flush=True)
running_server(ServerSpec(model, mark, VllmServerConfig(python=python)), Path(log))
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("model", ["good", "deaf"])
def test_no_server_outlives_its_parent(python, mark, tmp_path, model, number):
    log = tmp_path / "server.log"
    command = [sys.executable, "-c", PARENT, python, model, mark, log]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as parent:
        assert parent.stdout.readline() == b"starting\n"
        if model == "good":
            assert parent.stdout.readline() == b"up\n"
        # The parent has the mark in its command line too.
        wait_until(lambda: len(processes(mark)) == 4)
        parent.send_signal(number)
        wait_until(lambda: not processes(mark))
        (scratch,) = scratch_folders(log)
        wait_until(lambda: not scratch.exists())


@pytest.mark.parametrize("victim", ["server", "guard"])
def test_a_killed_server_runs_again_on_its_port(spec, mark, log, started, victim):
    server = started(spec())
    killed = {process.pid for process in processes(mark)}
    target = server_process(mark) if victim == "server" else psutil.Process(server._guard.pid)
    target.kill()
    wait_until(lambda: server.restarts == 1 and healthy(server.base_url))
    assert running_server(spec(), log) == server.base_url
    running = {process.pid for process in processes(mark)}
    assert len(running) == 3
    assert not running & killed
    first, _ = scratch_folders(log)
    if victim == "guard":
        shutil.rmtree(first)  # only the guard knew of it
    assert not first.exists()


def test_a_server_that_keeps_dying_stays_down_and_the_next_request_starts_another(
    spec, mark, started, monkeypatch
):
    monkeypatch.setattr(vllm_server, "MAX_RESTARTS", 1)
    server = started(spec("fleeting"))
    wait_until(lambda: not (healthy(server.base_url) or server.alive()))
    assert server.restarts == 1
    assert "status 3" in server.failure()
    assert not processes(mark)
    assert started(spec("fleeting")) is not server


def test_equal_specs_share_a_server_and_another_spec_replaces_it(spec, mark, log):
    with ThreadPoolExecutor(4) as threads:
        urls = set(threads.map(lambda _: running_server(spec(), log), range(4)))
    (shared,) = urls
    other = running_server(spec(options={"max_model_len": 9}), log)
    assert not healthy(shared)
    assert healthy(other)
    assert len(processes(mark)) == 3


LOADING = {"enable_lora": True}


def served(server):
    with urllib.request.urlopen(f"{server.base_url}/models", timeout=5) as answer:
        return [model["id"] for model in json.load(answer)["data"]]


def test_adapters_are_loaded_into_the_running_server_and_again_when_it_died(
    spec, mark, log, tmp_path
):
    one, two = (Adapter(name, tmp_path / name) for name in ("one", "two"))
    url = running_server(spec(options=LOADING), log, one)
    guard = vllm_server._server._guard.pid
    assert [running_server(spec(options=LOADING), log, each) for each in (two, one, two)] == [
        url
    ] * 3
    server = vllm_server._server
    assert server._guard.pid == guard, "the same server"
    assert served(server) == [mark, "one", "two"]
    server_process(mark).kill()
    wait_until(lambda: server.restarts == 1 and healthy(url))
    assert served(server) == [mark, "two"], "the one asked for last"
    running_server(spec(options=LOADING), log, one)
    assert served(server) == [mark, "two", "one"]
    server_process(mark).kill()
    running_server(spec(options=LOADING), log, two)  # waits until it is back
    assert "two" in served(server)
    loaded = re.findall(r"^loaded (.+)$", log.read_text(), re.MULTILINE)
    assert loaded[:3] == [str(each.folder) for each in (one, two, one)]


def test_adapters_that_the_server_refuses_are_an_error_with_its_words(spec, log, tmp_path):
    refused = Adapter("refused", tmp_path)
    with pytest.raises(ModelError, match=r"in \S+: rank 64 is greater.*take `enable_lora` out"):
        running_server(spec(options=LOADING), log, refused)
    assert vllm_server._server.alive()
    with pytest.raises(ModelError, match="did not load"):
        running_server(spec(), log, Adapter("one", tmp_path))


def test_what_the_server_can_load_stands_in_its_options():
    for options, rank in (
        ({}, 0),
        ({"max_lora_rank": 64}, 0),
        ({"enable-lora": True}, 16),
        ({"enable_lora": True, "max-lora-rank": 64}, 64),
    ):
        assert adapter_rank(VllmServerConfig.checked({"options": options})) == rank


def test_stop_all_ends_a_start_that_waits_in_another_thread(spec, mark, log):
    with ThreadPoolExecutor(1) as thread:
        start = thread.submit(running_server, spec("deaf"), log)
        wait_until(lambda: len(processes(mark)) == 3)
        stop_all()
        with pytest.raises(ModelError, match="stopped while it started"):
            start.result(20)
    assert not processes(mark)


def test_a_process_that_ignores_the_request_to_end_is_killed():
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    command = [sys.executable, "-S", "-c", f"{code}; signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as stubborn:
        assert stubborn.stdout.readline() == b"1\n"
        reaper = threading.Thread(target=stubborn.wait)
        reaper.start()
        server_guard.end_session(stubborn.pid, grace_seconds=0.2)
        reaper.join(20)
        assert stubborn.returncode == -signal.SIGKILL


def test_the_start_is_refused_without_a_vllm_environment(spec, log, tmp_path):
    config = VllmServerConfig(python=tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="make vllm"):
        running_server(ServerSpec("good", "m", config), log)


@pytest.mark.parametrize(
    ("gpu", "options", "flags", "absent"),
    [
        (False, {}, ["--dtype=float32", "--gpu-memory-utilization=0.4"], []),
        (True, {}, ["--generation-config=vllm"], ["--dtype=float32"]),
        (False, {"dtype": "bfloat16"}, ["--dtype=bfloat16"], ["--dtype=float32"]),
        (False, {"dtype": None}, [], ["--dtype=float32", "--dtype=None"]),
        (True, {"max-model-len": 256}, ["--max-model-len=256"], []),
        (True, {"enforce_eager": True}, ["--enforce-eager"], []),
        (True, {"async_scheduling": False}, ["--no-async-scheduling"], []),
        (True, {"chat_template": "--port=1"}, ["--chat-template=--port=1"], ["--port=1"]),
    ],
)
def test_options_become_flags(python, monkeypatch, gpu, options, flags, absent):
    monkeypatch.setattr(vllm_server, "_has_gpu", lambda: gpu)
    config = VllmServerConfig.checked({"python": python, "options": options})
    command = server_command(ServerSpec("org/model", "name", config, "pooling"), 8123)
    assert command[:3] == [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    assert {*flags, "--model=org/model", "--runner=pooling", "--port=8123"} <= set(command)
    assert not set(absent) & set(command)


@pytest.mark.parametrize("name", ["port", "served-model-name", "model", "--dtype", "a b", "Dtype"])
def test_options_that_are_no_options_of_the_users_are_refused(name):
    with pytest.raises(ConfigError):
        VllmServerConfig.checked({"options": {name: 1}})


def test_only_a_model_in_a_folder_is_loaded_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.setattr(vllm_server, "_has_gpu", lambda: False)
    config = VllmServerConfig()
    local = server_environment(ServerSpec(str(tmp_path), "m", config))
    assert local["HF_HUB_OFFLINE"] == local["DO_NOT_TRACK"] == local["VLLM_NO_USAGE_STATS"] == "1"
    assert local["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert "HF_HUB_OFFLINE" not in server_environment(ServerSpec("org/model", "m", config))
    assert os.environ.get("HF_HUB_OFFLINE") is None


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("", ""),
        ("(APIServer pid=1) INFO 11-21 13:20:07 [a.py:1] all is well", ""),
        (
            """usage: api_server.py [-h]
api_server.py: error: unrecognized arguments: --x=3""",
            "api_server.py: error: unrecognized arguments: --x=3",
        ),
        (
            """(W pid=1) WARNING 11-21 13:20:07 [s.py:2] errors like `OSError: [Errno 24] Too many`
Traceback (most recent call last):
  File "launcher.py", line 348, in create_server_socket
    sock.bind(addr)
OSError: [Errno 98] Address already in use""",
            "OSError: [Errno 98] Address already in use",
        ),
        (
            """(Worker pid=28) ERROR 11-21 13:22:49 [exec.py:953] a_rust.SafetensorError: cut off
(EngineCore pid=27) ERROR 11-21 13:22:51 [core.py:1510] Exception: See stack trace for the cause.
RuntimeError: Engine core initialization failed. See root cause above.""",
            "a_rust.SafetensorError: cut off",
        ),
        (
            """a.ValidationError: 1 error for ModelConfig
  Value error, too long: 4096 > \x1b[31m256
Exception ignored in: x
  indented""",
            "a.ValidationError: 1 error for ModelConfig Value error, too long: 4096 > [31m256",
        ),
        ("ValueError: " + "x" * 1000, "ValueError: " + "x" * 488),
    ],
)
def test_the_cause_is_the_last_error_named_first_hand(log, cause):
    assert failure_cause(log) == cause
