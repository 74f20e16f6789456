"""How many GPUs a stage is said to have held."""

import sys
from types import SimpleNamespace

import pytest

from flows import vllm_server
from flows.gpu_use import gpus_held, watch_gpus
from flows.vllm_server import ServerSpec
from stages.vllm_settings import VllmServerConfig


@pytest.fixture
def peaks(monkeypatch):
    """Peak memory of two GPUs that torch has initialised; watching sets it to what is held now."""
    held, peaks = [0, 7], [3, 9]
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        max_memory_allocated=peaks.__getitem__,
        reset_peak_memory_stats=lambda device: peaks.__setitem__(device, held[device]),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return peaks


def test_without_torch_or_a_server_no_gpu_is_held(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    watch_gpus()
    assert gpus_held() == 0
    assert "torch" not in sys.modules


def test_gpus_with_memory_since_the_stage_began_count(peaks):
    assert gpus_held() == 2
    watch_gpus()
    assert gpus_held() == 1
    peaks[0] = 4
    assert gpus_held() == 2


@pytest.mark.parametrize(("has_gpu", "expected"), [(True, 6), (False, 0)])
def test_a_server_holds_a_gpu_for_each_of_its_parallel_workers(monkeypatch, has_gpu, expected):
    options = {"tensor_parallel_size": 2, "data_parallel_size": 3}
    spec = ServerSpec("model", "model", VllmServerConfig(options=options))
    monkeypatch.setattr(vllm_server, "_server", SimpleNamespace(spec=spec, alive=lambda: True))
    monkeypatch.setattr(vllm_server, "_has_gpu", lambda: has_gpu)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert gpus_held() == expected
