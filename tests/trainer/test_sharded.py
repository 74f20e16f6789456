"""FSDP spreads one model over two processes, and the result is one process's."""

import json
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

from stages.content_ids import file_sha256
from stages.errors import ConfigError, WorkspaceError
from tests.trainer.test_distributed import CPU, ROOT
from tests.trainer.test_dpo import QUICK, Killed, repeatable, run, stop_at, values
from trainer import launch
from trainer.adapters import AdapterConfig

FSDP = ROOT / "configs/accelerate/fsdp.yaml"
STEPWISE = QUICK.model_copy(update={"checkpoint_every_steps": 2, "fast_path": "off"})


@pytest.fixture
def spread(monkeypatch):
    """Trains in two gloo processes, told what Accelerate's launcher tells of the shipped file."""
    asked = yaml.safe_load(FSDP.read_text())["fsdp_config"]
    told = {name.upper(): json.dumps(value).strip('"') for name, value in asked.items()}
    told |= {"ACCELERATE_USE_FSDP": "true", "PYTHONPATH": str(ROOT)}
    command = ["env", *(f"{name}={value}" for name, value in told.items()), sys.executable]
    command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.trainer.fsdp_on_cpu"]
    monkeypatch.setattr(launch, "launch_command", lambda _, job: [*command, job])

    def train(rows, model, folder, config, **rest):
        config = config.model_copy(update={"accelerate": CPU})
        return run(rows, model, folder, config, **rest)

    return train


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=4)], ids=["whole", "adapters"])
def test_fsdp_trains_as_one_process_does(adapter, spread, clear_pairs, model_folder, tmp_path):
    config = STEPWISE.model_copy(update={"adapter": adapter})
    one = run(clear_pairs, model_folder, tmp_path / "one", config)
    two = spread(clear_pairs, model_folder, tmp_path / "two", config)
    manifest = json.loads((two.model_path / "manifest.json").read_text())
    assert (manifest["processes"], manifest["sharding"]) == (2, "FSDP")
    assert manifest["computation"] == "TRL's own: FSDP spreads the model over the processes"
    assert any("KL to the reference was not measured" in said for said in manifest["warnings"])
    for metric in ("loss", "rewards/margins", "grad_norm"):
        assert values(two, metric) == pytest.approx(values(one, metric), abs=1e-5), metric
    for name in ("model.safetensors", "adapter/adapter_model.safetensors")[: 1 + bool(adapter)]:
        expected, found = (load_file(result.model_path / name) for result in (one, two))
        assert max((found[part] - expected[part]).abs().max() for part in expected) <= 1e-5
    assert list((tmp_path / "two/checkpoints").iterdir()) == []


@pytest.mark.slow
def test_stopped_and_resumed_fsdp_has_the_same_bits(spread, clear_pairs, model_folder, tmp_path):
    whole = spread(clear_pairs, model_folder, tmp_path / "whole", STEPWISE)
    with pytest.raises(Killed):
        spread(clear_pairs, model_folder, tmp_path / "cut", STEPWISE, progress=stop_at(3))
    steps = []
    for _ in range(60):
        try:
            resumed = spread(
                clear_pairs,
                model_folder,
                tmp_path / "cut",
                STEPWISE,
                progress=lambda step, total: steps.append((step, total)),
            )
            break
        except WorkspaceError:
            time.sleep(1)  # the processes are about to end
    assert (2, 8) in steps
    assert (1, 8) not in steps
    weights = (result.model_path / "model.safetensors" for result in (resumed, whole))
    assert len(set(map(file_sha256, weights))) == 1
    assert repeatable(resumed).equals(repeatable(whole))


def test_without_a_gpu_to_spread_over_it_is_refused(
    clear_pairs, model_folder, tmp_path, monkeypatch
):
    """Accelerate would have each process train alone, without a word."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("fsdp", "deepspeed-zero2"):
        path = ROOT / f"configs/accelerate/{name}.yaml"
        config = QUICK.model_copy(update={"accelerate": path})
        with pytest.raises(ConfigError, match=r"there is no CUDA device.*accelerate/cpu\.yaml"):
            run(clear_pairs, model_folder, tmp_path, config)
