"""Metrics go elsewhere only when asked, and nothing about the training changes with it."""

import contextlib
import json
import sys
from types import SimpleNamespace

import polars as pl
import pytest
from transformers import TrainerCallback

from stages.errors import ConfigError, ModelError
from tests.trainer.test_dpo import QUICK, repeatable, run
from trainer.dpo_settings import DPOTrainingConfig
from trainer.reporting import require_trackers
from trainer.step_metrics import SPEEDS


def test_tensorboard_has_every_metric_and_the_policy_is_the_same(
    clear_pairs, model_folder, tmp_path
):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    short = QUICK.model_copy(update={"epochs": 1.0})
    silent = run(clear_pairs, model_folder, tmp_path / "silent", short)
    reporting = short.model_copy(update={"report_to": ("tensorboard",)})
    told = run(clear_pairs, model_folder, tmp_path / "told", reporting)
    assert not (tmp_path / "silent/tensorboard").exists()
    assert told.weights_hash == silent.weights_hash
    assert repeatable(told).equals(repeatable(silent))
    fingerprint = json.loads((told.model_path / "manifest.json").read_text())["fingerprint"]
    assert (
        fingerprint == json.loads((silent.model_path / "manifest.json").read_text())["fingerprint"]
    )
    events = reader.EventAccumulator(str(tmp_path / "told/tensorboard" / f"run-{fingerprint}"))
    events.Reload()
    found = [
        (event.step, metric, event.value)
        for metric in told.metrics["metric"].unique()
        for event in events.Scalars(f"train/{metric}")
    ]
    found = pl.DataFrame(found, schema=["step", "metric", "value"], orient="row")
    found = found.unique()  # the epoch is said again at the end
    both = told.metrics.join(found, on=["step", "metric"], suffix="_there")
    assert both.height == told.metrics.height == found.height
    for value, there in both.select("value", "value_there").iter_rows():
        assert there == pytest.approx(value, rel=1e-6), "TensorBoard keeps 32 bits"
    assert set(SPEEDS) & set(found["metric"])


@pytest.mark.parametrize(("rate", "code"), [(1e-3, 0), (1e30, 1)])
def test_a_tracker_is_told_every_step_and_that_the_training_ended(
    rate, code, clear_pairs, model_folder, tmp_path, monkeypatch
):
    """W&B's place is taken: what tells it, and the module."""
    told, ended = [], []

    class Telling(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            told.append((args.run_name, state.global_step, logs.get("drift/chosen")))

    wandb = SimpleNamespace(finish=ended.append)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("trainer.reporting.find_spec", lambda _: True)
    monkeypatch.setattr(
        "transformers.integrations.get_reporting_integration_callbacks", lambda _: [Telling]
    )
    settings = {"epochs": 1.0, "learning_rate": rate, "report_to": ("wandb",), "warmup_ratio": 0.0}
    outcome = pytest.raises(ModelError) if code else contextlib.nullcontext()
    with outcome:
        run(clear_pairs, model_folder, tmp_path, QUICK.model_copy(update=settings))
    assert ended == [code]
    if not code:
        fingerprint = json.loads((tmp_path / "model/manifest.json").read_text())["fingerprint"]
        steps = [(name, step) for name, step, drift in told if drift is not None]
        assert steps == [(f"run-{fingerprint}", step) for step in (1, 2, 3, 4)]


def test_a_tracker_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setattr("trainer.reporting.find_spec", lambda name: name == "mlflow" or None)
    require_trackers(("mlflow",))
    message = (
        r"report_to names wandb, trackio, .*pip install -c constraints.txt wandb; "
        r"\S+pip install --no-deps trackio gradio-client\."
    )
    with pytest.raises(ConfigError, match=message):
        require_trackers(("wandb", "mlflow", "trackio"))
    with pytest.raises(ConfigError, match="report_to"):
        DPOTrainingConfig.checked({"report_to": ["comet"]})


def test_where_metrics_and_processes_are_decides_no_result():
    asked = DPOTrainingConfig(report_to=("tensorboard",), accelerate="configs/accelerate/ddp.yaml")
    assert asked.deciding() == DPOTrainingConfig().deciding()
