"""Several processes give one process's numbers, and what goes wrong in them is said."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stages.content_ids import file_sha256
from stages.errors import ConfigError, DataError, MissingFileError, ModelError, WorkspaceError
from tests.trainer.test_dpo import QUICK, repeatable, run
from trainer import launch, processes
from trainer.dpo_settings import DPOTrainingConfig

ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "configs/accelerate/cpu.yaml"


def test_two_processes_train_as_one_does(clear_pairs, model_folder, tmp_path):
    """Gloo on a CPU: the same batches, each process computing half of every one."""
    stopping = QUICK.stopping.model_copy(update={"heldout_share": 0.25})
    config = QUICK.model_copy(update={"stopping": stopping})
    one = run(clear_pairs, model_folder, tmp_path / "one", config)
    said, steps = [], []
    two = run(
        clear_pairs,
        model_folder,
        tmp_path / "two",
        config.model_copy(update={"accelerate": CPU}),
        progress=lambda *step: steps.append(step),
        note=said.append,
    )
    manifest = (two.model_path / "manifest.json").read_text()
    assert '"processes": 2' in manifest
    assert '"computation": "shared prompts"' in manifest
    assert len(said) == 6, "a line a step, by one of them"
    assert steps == [(12, 12), *((step, 6) for step in range(7))]
    assert two.steps == one.steps == 6
    for (step, metric, value), other in zip(
        repeatable(one).sort("step", "metric").rows(),
        repeatable(two).sort("step", "metric").rows(),
        strict=True,
    ):
        assert (step, metric) == other[:2]
        assert other[2] == pytest.approx(value, abs=1e-5), metric
    expected, found = (load_file(result.model_path / "model.safetensors") for result in (one, two))
    assert max((found[name] - expected[name]).abs().max() for name in expected) <= 1e-5
    assert list((tmp_path / "two/checkpoints").iterdir()) == []


KILLED = """
import sys, os, signal
from pathlib import Path
import polars as pl
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
rows, model, folder, config = sys.argv[1:]
def progress(step, total):
    if (step, total) == (5, 8):
        os.kill(os.getpid(), signal.SIGKILL)
train_dpo(
    pl.read_parquet(rows), Path(model), Path(model), DPOTrainingConfig.model_validate_json(config),
    Path(folder) / "model", Path(folder) / "checkpoints", progress,
)
"""


@pytest.mark.slow
def test_killed_and_resumed_has_the_same_bits(clear_pairs, model_folder, tmp_path):
    """The processes end when the one that started them is killed; adapters are on the way."""
    adapter = {"adapter": {"rank": 4}, "accelerate": CPU, "gradient_accumulation_steps": 2}
    config = DPOTrainingConfig.checked({**QUICK.model_dump(), **adapter})
    whole = run(clear_pairs, model_folder, tmp_path / "whole", config)
    clear_pairs.write_parquet(tmp_path / "rows.parquet")
    arguments = [tmp_path / "rows.parquet", model_folder, tmp_path / "cut"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments), config.model_dump_json()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    for _ in range(60):
        try:
            resumed = run(clear_pairs, model_folder, tmp_path / "cut", config)
            break
        except WorkspaceError:
            time.sleep(1)  # they are about to end
    for place in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert file_sha256(resumed.model_path / place) == file_sha256(whole.model_path / place)
    assert repeatable(resumed).equals(repeatable(whole))


REPORTING = """
import sys
for line in ("progress", [3, 8]), ("note", "loss 0.7"):
    print("\\x1e" + __import__("json").dumps(dict([line])))
print("warning: a library", end="" if sys.argv[1] else "\\n")
if sys.argv[1]:
    print("\\x1e" + sys.argv[1])
sys.exit(int(sys.argv[2]))
"""


ERROR = {"kind": "DataError", "found": "no <b>", "expected": "x", "where": "", "remedy": "y"}


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        ("", 0, contextlib.nullcontext()),
        (
            json.dumps({"error": ERROR}),
            1,
            pytest.raises(DataError, match=r"^no <b>\. Expected x\. To mend it: y\.$"),
        ),
        ("", 7, pytest.raises(ModelError, match=r"ended with code 7.* Where: warning: a library")),
    ],
    ids=["success", "error", "silence"],
)
def test_what_processes_report_is_handed_on(error, status, expected, clear_pairs, monkeypatch):
    command = [sys.executable, "-c", REPORTING, error, str(status)]
    monkeypatch.setattr(launch, "launch_command", lambda *_: command)
    steps, notes = [], []

    def progress(step, total):
        steps.append((step, total))

    with expected:
        launch.train_in_processes(CPU, clear_pairs, {}, progress, notes.append)
    assert (steps, notes) == ([(3, 8)], ["loss 0.7"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").iterdir()), ids=str)
def test_shipped_files_start_the_training_module(path):
    from accelerate.commands.config.config_args import load_config_from_file

    command = launch.launch_command(path, "JOB")
    assert command[-3:] == ["-m", "trainer.launched", "JOB"]
    assert load_config_from_file(str(path)).num_processes == 2, "Accelerate knows every key"


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"none.yaml.* cannot be read"):
        launch.launch_command(tmp_path / "none.yaml", "JOB")
    (tmp_path / "other.yaml").write_text("name: dpo")
    with pytest.raises(ConfigError, match="no key distributed_type"):
        launch.launch_command(tmp_path / "other.yaml", "JOB")


def test_batches_are_divided_or_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = DPOTrainingConfig(batch_size=8, gradient_accumulation_steps=2)
    processes.require_divisible(8, config)
    # 11 rows are two micro-batches of 8 / 2 over all processes, and 3 rows.
    (left,) = processes.warnings(11, config)
    assert left.startswith("3 of 11 rows were left out of each epoch, others each time")
    (left,) = processes.warnings(11, config.model_copy(update={"loss_type": "kto"}))
    assert "the same each time" in left
    with pytest.raises(DataError, match="7 rows are less than one batch of 8"):
        processes.require_divisible(7, config)
    with pytest.raises(ConfigError, match="12 is not divisible by 4 processes x 2"):
        processes.require_divisible(
            99, DPOTrainingConfig(batch_size=12, gradient_accumulation_steps=2)
        )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert processes.suffix() == "-FSDP-4"
    assert "KL to the reference was not measured" in processes.warnings(8, config)[0]
    with pytest.raises(ConfigError, match="FSDP would spread weights in 4 bits"):
        processes.require_divisible(8, DPOTrainingConfig(batch_size=8, adapter={"kind": "qlora"}))
