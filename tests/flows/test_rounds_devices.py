"""GPUs of server and training: side by side where they are apart, else one after the other."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from flows import vllm_server
from flows.rounds import using_devices
from flows.vllm_server import (
    ServerSpec,
    end_of_run,
    kept_between_runs,
    make_room,
    running_server,
    stop_all,
)
from stages.vllm_settings import VllmServerConfig

FAKE = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture
def start(tmp_path):
    """Start a server with these devices; return its processes: the guard and all below."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -S {FAKE} "$@"\n')
    python.chmod(0o755)

    def started(*devices):
        config = VllmServerConfig(python=python, devices=devices)
        running_server(ServerSpec("good", uuid.uuid4().hex, config), tmp_path / "server.log")
        guard = psutil.Process(vllm_server._server._guard.pid)
        return [guard, *guard.children(recursive=True)]

    yield started
    stop_all()


def seen_by(processes):
    """What the server itself was told of GPUs."""
    server = next(p for p in processes if str(FAKE) in p.cmdline())
    return server.environ().get("CUDA_VISIBLE_DEVICES")


def resident(processes):
    return sum(p.memory_info().rss for p in processes if p.is_running())


def test_a_server_sees_its_own_devices_and_outlives_training_on_others(start):
    with using_devices((0,)):
        processes = start(1, 2)
        assert seen_by(processes) == "1,2"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        make_room()
    assert all(p.is_running() for p in processes)


@pytest.mark.parametrize(
    ("own", "training"),
    [((), ""), ((), "0"), ((1,), ""), ((0, 1), "1, 2"), ((1,), "0,GPU-8932f937"), ((1,), None)],
)
def test_a_server_that_may_share_a_gpu_is_gone_before_training(start, own, training, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if training is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", training)
    processes = start(*own)
    assert resident(processes) > 0
    make_room()
    assert resident(processes) == 0, "its memory is free"


def test_a_series_keeps_the_server_from_run_to_run_and_stops_it_at_its_end(start):
    with kept_between_runs():
        processes = start()
        end_of_run()
        assert all(p.is_running() for p in processes)
    assert resident(processes) == 0
    processes = start()
    end_of_run()
    assert resident(processes) == 0


def test_a_server_without_devices_sees_those_of_this_process(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with using_devices(()):
        assert seen_by(start()) == "5"
    with using_devices((3,)):
        assert seen_by(start()) == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_the_process_has_its_devices_back_afterwards(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with using_devices((3,)):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
