import json
import math
import os
import re
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import polars as pl
import pytest
from transformers import GPT2Config

from stages.configuration import Config
from stages.content_ids import file_sha256, weights_hash
from stages.errors import ConfigError, DataError, MissingFileError, ModelError, WorkspaceError
from trainer import dpo
from trainer.checkpoints import is_complete, last_complete
from trainer.dpo import metrics_frame, train_dpo
from trainer.dpo_settings import SMOOTHED_LOSSES, DPOTrainingConfig, LossType
from trainer.loading import longest_sequence
from trainer.step_metrics import SPEEDS
from trainer.stopping import StoppingConfig

ROOT = Path(__file__).resolve().parents[2]

QUICK = DPOTrainingConfig(
    learning_rate=1e-3,
    batch_size=4,
    epochs=2,
    max_length_tokens=64,
    checkpoint_every_steps=3,
    stopping=StoppingConfig(kl_samples=2, kl_max_new_tokens=3),
    threads=1,
    seed=3,
)
"""8 steps on the 16 pairs, checks at 3, 6 and 8; the second epoch starts at step 5."""


class Killed(BaseException):
    """Stands for a kill in tests that stay within one process."""


def run(rows, model, folder, config=QUICK, **rest):
    return train_dpo(rows, model, model, config, folder / "model", folder / "checkpoints", **rest)


@pytest.fixture(scope="module")
def uninterrupted(clear_pairs, model_folder, tmp_path_factory):
    return run(clear_pairs, model_folder, tmp_path_factory.mktemp("uninterrupted"))


def values(result, metric):
    return result.metrics.filter(pl.col("metric") == metric).sort("step")["value"].to_list()


def repeatable(result):
    return result.metrics.filter(~pl.col("metric").is_in(SPEEDS))


def same_weights(a, b):
    names = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json")
    return all(file_sha256(a / name) == file_sha256(b / name) for name in names)


def test_result_names_its_weights_pairs_and_steps(uninterrupted, model_folder):
    assert uninterrupted.base_weights_hash == weights_hash(model_folder)
    assert uninterrupted.reference_weights_hash == weights_hash(model_folder)
    assert uninterrupted.weights_hash == weights_hash(uninterrupted.model_path)
    assert uninterrupted.weights_hash != uninterrupted.base_weights_hash
    assert (uninterrupted.steps, uninterrupted.pairs) == (8, 16)


def test_metrics_are_one_row_per_step_and_metric(uninterrupted):
    assert uninterrupted.metrics.schema == {
        "step": pl.Int64,
        "metric": pl.String,
        "value": pl.Float64,
    }
    assert set(uninterrupted.metrics["metric"]) == {
        "loss",
        "grad_norm",
        "learning_rate",
        "entropy",
        "num_tokens",
        "mean_token_accuracy",
        "logits/chosen",
        "logits/rejected",
        "logps/chosen",
        "logps/rejected",
        "rewards/accuracies",
        "rewards/chosen",
        "rewards/margins",
        "rewards/rejected",
        "epoch",
        "kl",
        "drift/chosen",
        "drift/rejected",
        "completion_tokens/chosen",
        "completion_tokens/rejected",
        "length_margin_correlation",
        "tokens_per_second",
        "pairs_per_second",
        "peak_memory_gib",
    }
    assert values(uninterrupted, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    counts = dict(uninterrupted.metrics.group_by("metric").len().iter_rows())
    assert counts.pop("kl") == 3, "at the checks"
    assert counts.pop("length_margin_correlation") == 6, "the first step changes nothing"
    assert set(counts.values()) == {8}


def test_the_policy_learns_a_clear_preference(uninterrupted):
    assert values(uninterrupted, "rewards/accuracies")[0] == 0.0
    assert values(uninterrupted, "rewards/accuracies")[-1] == 1.0
    assert values(uninterrupted, "rewards/margins")[-1] > 0.1
    assert values(uninterrupted, "loss")[-1] < math.log(2) - 0.05


def test_a_training_of_one_step_learns(clear_pairs, model_folder, tmp_path):
    config = QUICK.model_copy(update={"epochs": 1})
    result = run(clear_pairs.head(QUICK.batch_size), model_folder, tmp_path, config)
    assert result.steps == 1
    assert values(result, "learning_rate")[0] == config.learning_rate
    assert result.weights_hash != result.base_weights_hash


def test_a_context_by_another_name_is_the_limit(tmp_path):
    GPT2Config(n_positions=64).save_pretrained(tmp_path)
    assert (longest_sequence(tmp_path, 1024), longest_sequence(tmp_path, 32)) == (64, 32)


def test_the_saved_model_loads_and_ends_turns(uninterrupted, model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(uninterrupted.model_path)
    model = AutoModelForCausalLM.from_pretrained(uninterrupted.model_path)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>a<|assistant|>b<|eos|>"
    assert model.config.use_cache
    assert model.generation_config.eos_token_id == 2
    names = {path.name for path in uninterrupted.model_path.iterdir()}
    assert "training_args.bin" not in names, "it would be part of the weights hash"


def test_manifest_says_how_the_model_was_made(uninterrupted):
    manifest = json.loads((uninterrupted.model_path / "manifest.json").read_text())
    assert manifest["settings"]["beta"] == 0.1
    assert manifest["pairs"] == 16
    assert manifest["steps"] == 8
    assert manifest["seed"] == 3
    # printf 'pair_00\npair_01\n...pair_15' | sha256sum
    assert manifest["pair_ids_sha256"] == (
        "33c3a2276cc953c710f117d5d75e5e8747ffb86810a767fcd8efa7b2b3fd13b6"
    )
    assert manifest["base_dtypes"] == ["F32"]
    assert manifest["saved_dtypes"] == ["F32"]
    assert manifest["weights_hash"] == uninterrupted.weights_hash
    assert manifest["versions"]["trl"].startswith("1.")


def test_the_card_has_a_header_the_hashes_and_the_course(uninterrupted, model_folder):
    import yaml

    card = (uninterrupted.model_path / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "transformers"
    assert "dpo" in header["tags"]
    assert f"| weights | `{uninterrupted.weights_hash}` |" in card
    assert f"| reference weights | `{weights_hash(model_folder)}` |" in card
    assert "| pairs trained on | 16 |" in card
    assert f"| loss | 0.693 | {values(uninterrupted, 'loss')[-1]:.3g} |" in card


def test_a_half_precision_base_is_trained_and_saved_in_full(
    clear_pairs, half_model_folder, tmp_path
):
    from transformers import AutoConfig

    result = run(clear_pairs.head(4), half_model_folder, tmp_path)
    manifest = json.loads((result.model_path / "manifest.json").read_text())
    assert (manifest["base_dtypes"], manifest["saved_dtypes"]) == (["F16"], ["F32"])
    assert str(AutoConfig.from_pretrained(result.model_path).dtype) == "torch.float32"


def test_equal_runs_give_equal_bytes_whatever_the_row_order(
    clear_pairs, model_folder, uninterrupted, tmp_path
):
    shuffled = clear_pairs.sample(fraction=1.0, shuffle=True, seed=1)
    again = run(shuffled, model_folder, tmp_path)
    assert same_weights(again.model_path, uninterrupted.model_path)
    assert again.weights_hash == uninterrupted.weights_hash
    assert repeatable(again).equals(repeatable(uninterrupted))


def test_another_seed_gives_other_weights(clear_pairs, model_folder, uninterrupted, tmp_path):
    other = run(clear_pairs, model_folder, tmp_path, QUICK.model_copy(update={"seed": 4}))
    assert other.weights_hash != uninterrupted.weights_hash


KILLED_TRAINING = """
import os, signal, sys
from pathlib import Path
import polars as pl
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
rows, model, folder, config, kill_at = sys.argv[1:]
def progress(step, total):
    if step == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
train_dpo(
    pl.read_parquet(rows), Path(model), Path(model),
    DPOTrainingConfig.model_validate_json(config),
    Path(folder) / "model", Path(folder) / "checkpoints", progress,
)
"""


def test_training_killed_and_resumed_has_the_same_bits(
    clear_pairs, model_folder, uninterrupted, tmp_path
):
    clear_pairs.write_parquet(tmp_path / "rows.parquet")
    arguments = [tmp_path / "rows.parquet", model_folder, tmp_path, QUICK.model_dump_json(), 5]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_TRAINING, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (killed.stdout, killed.stderr) == (b"", b""), "training writes nothing to the terminal"
    assert not (tmp_path / "model").exists()
    steps = []
    resumed = run(clear_pairs, model_folder, tmp_path, progress=lambda *step: steps.append(step))
    assert steps == [(3, 8), (4, 8), (5, 8), (6, 8), (7, 8), (8, 8)]
    assert same_weights(resumed.model_path, uninterrupted.model_path)
    assert resumed.weights_hash == uninterrupted.weights_hash
    assert repeatable(resumed).equals(repeatable(uninterrupted))


@pytest.mark.parametrize("kill_at", [1, 4, 7, 8])
def test_stopped_at_any_step_and_resumed_has_the_same_bits(
    kill_at, clear_pairs, model_folder, uninterrupted, tmp_path
):
    def progress(step, total):
        if step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, progress=progress)
    resumed = run(clear_pairs, model_folder, tmp_path)
    assert resumed.weights_hash == uninterrupted.weights_hash
    assert repeatable(resumed).equals(repeatable(uninterrupted))


def test_resume_is_exact_with_accumulation_and_an_uneven_last_batch(
    clear_pairs, model_folder, tmp_path
):
    config = QUICK.model_copy(
        update={"gradient_accumulation_steps": 2, "checkpoint_every_steps": 2, "loss_type": "ipo"}
    )
    rows = clear_pairs.head(13)
    whole = run(rows, model_folder, tmp_path / "whole", config)

    def progress(step, total):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        run(rows, model_folder, tmp_path / "cut", config, progress=progress)
    resumed = run(rows, model_folder, tmp_path / "cut", config)
    assert resumed.weights_hash == whole.weights_hash
    assert repeatable(resumed).equals(repeatable(whole))


def stop_at(step_to_stop):
    def progress(step, total):
        if step == step_to_stop:
            raise Killed

    return progress


def only_run_folder(folder):
    (found,) = (folder / "checkpoints").iterdir()
    return found


def test_a_checkpoint_cut_off_while_saving_is_passed_over(
    clear_pairs, model_folder, uninterrupted, tmp_path
):
    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, progress=stop_at(7))
    folder = only_run_folder(tmp_path)
    assert last_complete(folder).name == "checkpoint-6"
    (folder / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    assert not is_complete(folder / "checkpoint-6")
    assert last_complete(folder).name == "checkpoint-3"
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "model.safetensors").write_bytes(b"")
    resumed = run(clear_pairs, model_folder, tmp_path)
    assert resumed.weights_hash == uninterrupted.weights_hash
    assert repeatable(resumed).equals(repeatable(uninterrupted))


def test_a_checkpoint_of_another_run_is_not_resumed(clear_pairs, model_folder, tmp_path):
    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, progress=stop_at(7))
    steps = []
    run(
        clear_pairs.head(8),
        model_folder,
        tmp_path,
        progress=lambda step, total: steps.append(step),
    )
    assert steps == [8, 0, 1, 2, 3, 4], "the reference's eight pairs, then the steps"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1, "the killed one's are kept"


def test_two_processes_do_not_train_the_same_at_once(clear_pairs, model_folder, tmp_path):
    def second(step, total):
        with pytest.raises(WorkspaceError, match="another process is training this"):
            run(clear_pairs, model_folder, tmp_path)
        raise Killed

    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, progress=second)
    assert run(clear_pairs.head(4), model_folder, tmp_path).steps == 2


def test_a_finished_training_is_not_repeated(clear_pairs, model_folder, uninterrupted):
    def progress(step, total):
        raise AssertionError("trained again")

    again = run(clear_pairs, model_folder, uninterrupted.model_path.parent, progress=progress)
    assert again.weights_hash == uninterrupted.weights_hash
    assert repeatable(again).equals(repeatable(uninterrupted))
    assert list((uninterrupted.model_path.parent / "checkpoints").iterdir()) == []


def test_a_foreign_output_folder_is_refused_before_training(clear_pairs, model_folder, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(WorkspaceError, match="holds something else"):
        run(clear_pairs, model_folder, tmp_path)


def test_loss_is_equation_7_of_rafailov(clear_pairs, model_folder, other_model_folder, tmp_path):
    """Policy and reference differ, so that the loss is not just log 2."""
    import torch
    from transformers import AutoModelForCausalLM

    config = QUICK.model_copy(update={"beta": 0.3, "epochs": 0.25})
    rows = clear_pairs.head(4)
    result = train_dpo(
        rows, model_folder, other_model_folder, config, tmp_path / "model", tmp_path / "checkpoints"
    )
    assert result.reference_weights_hash == weights_hash(other_model_folder)
    assert result.steps == 1

    def log_prob(model, prompt, completion):
        text = f"<|user|>{prompt}<|assistant|>"
        tokenizer = dpo._load_tokenizer(model_folder, model_folder)
        head = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(f"{text}{completion}<|eos|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(logits[i - 1, ids[i]].item() for i in range(len(head), len(ids)))

    pi, ref = (
        AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (model_folder, other_model_folder)
    )
    losses = []
    for row in rows.iter_rows(named=True):
        prompt = row["prompt"][0]["content"]
        ratio = {
            side: log_prob(pi, prompt, row[side]) - log_prob(ref, prompt, row[side])
            for side in ("chosen", "rejected")
        }
        margin = 0.3 * (ratio["chosen"] - ratio["rejected"])
        losses.append(math.log(1 + math.exp(-margin)))
    assert values(result, "loss")[0] == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert abs(values(result, "loss")[0] - math.log(2)) > 1e-3


def test_margins_are_zero_before_the_first_step(uninterrupted):
    for metric in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert values(uninterrupted, metric)[0] == pytest.approx(0, abs=1e-5)


def test_a_reference_other_than_the_one_named_is_detected(
    clear_pairs, model_folder, other_model_folder, tmp_path, monkeypatch
):
    load = dpo.load_language_model
    monkeypatch.setattr(dpo, "load_language_model", lambda _: load(other_model_folder))
    with pytest.raises(ModelError, match=r"largest implicit reward is .* same weights hash"):
        run(clear_pairs, model_folder, tmp_path)


def test_nan_weights_are_detected_before_training(clear_pairs, model_folder, tmp_path, monkeypatch):
    load = dpo.load_language_model

    def with_nan(folder):
        model = load(folder)
        model.lm_head.weight.data[5, 5] = float("nan")
        return model

    monkeypatch.setattr(dpo, "load_language_model", with_nan)
    with pytest.raises(ModelError, match="implicit reward is nan"):
        run(clear_pairs, model_folder, tmp_path)


def test_a_loss_that_is_not_finite_stops_training(clear_pairs, model_folder, tmp_path, monkeypatch):
    from trainer.private_dpo import PrivateDPOTrainer

    seen, compute_loss = [], PrivateDPOTrainer.compute_loss

    def nan_at_step_5(self, model, inputs, *args, **kwargs):
        seen.append([self.row_ids[row] for row in inputs["row"].tolist()])
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(PrivateDPOTrainer, "compute_loss", nan_at_step_5)
    with pytest.raises(ModelError, match=r"unstable at step 5: .*'loss': nan") as raised:
        run(clear_pairs, model_folder, tmp_path)
    assert f", on {', '.join(seen[4])}. Expected" in str(raised.value)
    assert sorted(chain.from_iterable(seen[:4])) == clear_pairs["pair_id"].to_list(), "an epoch"
    assert "last complete checkpoint: checkpoint-3" in str(raised.value)
    assert not (tmp_path / "model").exists()
    assert last_complete(only_run_folder(tmp_path)).name == "checkpoint-3"


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 GiB.", True),
        ("[enforce fail] DefaultCPUAllocator: can not allocate memory", True),
        ("the size of tensor a (3) must match", False),
    ],
)
def test_running_out_of_memory_says_what_takes_it(
    error, explained, clear_pairs, model_folder, tmp_path, monkeypatch
):
    import torch

    from trainer.private_dpo import PrivateDPOTrainer

    def fail(*_, **__):
        raise (torch.OutOfMemoryError if "CUDA" in error else RuntimeError)(error)

    monkeypatch.setattr(PrivateDPOTrainer, "compute_loss", fail)
    expected = "micro-batches of 4 pairs .* up to 64 tokens .*raise gradient_accumulation_steps"
    with pytest.raises(ModelError if explained else RuntimeError) as found:
        run(clear_pairs, model_folder, tmp_path)
    assert bool(re.search(expected, str(found.value))) == explained


@pytest.mark.parametrize(("samples", "found"), [(0, "'grad_norm': nan"), (1, "'kl': nan")])
def test_a_gradient_that_is_not_finite_stops_training(
    samples, found, clear_pairs, model_folder, tmp_path
):
    wild = QUICK.model_copy(
        update={
            "learning_rate": 1e30,
            "checkpoint_every_steps": 1,
            "warmup_ratio": 0.0,
            "stopping": StoppingConfig(kl_samples=samples),
        }
    )
    with pytest.raises(ModelError, match=f"unstable at step 2: .*{found}"):
        run(clear_pairs, model_folder, tmp_path, wild)


def test_a_reference_with_another_template_is_refused(clear_pairs, model_folder, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="differ in their chat template"):
        train_dpo(
            clear_pairs, model_folder, other, QUICK, tmp_path / "model", tmp_path / "checkpoints"
        )


def test_untrainable_rows_are_refused(clear_pairs, model_folder, tmp_path):
    rows = clear_pairs.with_columns(rejected=pl.col("chosen"))
    with pytest.raises(DataError, match="chosen_equals_rejected: 16 pairs, such as pair_00"):
        run(rows, model_folder, tmp_path)


def test_the_models_context_limits_the_length_too(clear_pairs, model_folder, tmp_path):
    config = QUICK.model_copy(update={"max_length_tokens": 1024})  # the model's context is 128
    rows = clear_pairs.head(1).with_columns(rejected=pl.lit("x" * 128))
    with pytest.raises(DataError, match="sequence_too_long: 1 pairs, such as pair_00"):
        run(rows, model_folder, tmp_path, config)


def test_a_folder_without_a_model_is_named(clear_pairs, tmp_path):
    with pytest.raises(MissingFileError, match="the policy holds no model"):
        run(clear_pairs, tmp_path / "nowhere", tmp_path)


def test_process_state_is_left_as_it_was(clear_pairs, model_folder, tmp_path):
    import logging
    import random

    import numpy as np
    import torch

    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    level = logging.getLogger("trl").level
    expected = torch.rand(1, generator=torch.Generator().manual_seed(7)).item()
    threads = torch.get_num_threads()
    run(clear_pairs.head(4), model_folder, tmp_path)
    assert torch.rand(1).item() == expected
    assert random.random() == random.Random(7).random()
    assert np.random.rand() == np.random.RandomState(7).rand()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert logging.getLogger("trl").level == level


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label_smoothing": 0.1, "loss_type": "hinge"},
            "only sigmoid, robust, exo_pair, aot, simpo, cpo read",
        ),
        ({"f_divergence": "forward_kl", "loss_type": "aot"}, "no meaning for loss_type 'aot'"),
        ({"weight_by": "confidence", "loss_type": "aot"}, "which sorts the pairs"),
        ({"stopping": {"minimum_margin_gain": 0.1}}, "set heldout_share"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "ignored by loss_type 'ipo'"),
        ({"loss_type": "exo_pair"}, "needs label_smoothing above 0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"loss_type": "bco_pair"}, "loss_type"),
        ({"batch_size": 6, "gradient_accumulation_steps": 4}, "does not divide"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"learningrate": 1e-6}, "nearest known: learning_rate"),
    ],
)
def test_settings_that_would_mislead_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DPOTrainingConfig.checked(settings)


@pytest.mark.parametrize("loss", [loss for loss in LossType.__args__ if loss != "kto"])
def test_every_allowed_loss_trains(loss, clear_pairs, model_folder, tmp_path):
    smoothing = 0.001 if loss in SMOOTHED_LOSSES else 0.0
    config = QUICK.model_copy(
        update={"loss_type": loss, "label_smoothing": smoothing, "epochs": 1.0}
    )
    result = run(clear_pairs.head(8), model_folder, tmp_path, config)
    assert result.steps == 2
    assert all(math.isfinite(value) for value in result.metrics["value"])


def test_equal_weights_train_the_same_bits_and_others_do_not(
    clear_pairs, model_folder, uninterrupted, tmp_path
):
    config = QUICK.model_copy(update={"weight_by": "confidence"})
    equal = clear_pairs.with_columns(confidence=pl.lit(0.75))
    result = run(equal, model_folder, tmp_path / "equal", config)
    assert result.weights_hash == uninterrupted.weights_hash
    rising = clear_pairs.with_columns(confidence=pl.int_range(1, pl.len() + 1) / 16)
    other = run(rising, model_folder, tmp_path / "rising", config)
    assert other.weights_hash != uninterrupted.weights_hash


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        ({}, "weight_by names the column 'confidence'"),
        ({"confidence": pl.lit(None)}, "16 of 16 pairs have no confidence above 0"),
        ({"confidence": pl.int_range(pl.len()) / 16}, "1 of 16 pairs .* such as pair_00"),
        ({"confidence": pl.lit(float("nan"))}, "16 of 16 pairs have no confidence above 0"),
    ],
)
def test_pairs_without_a_weight_are_refused(
    confidence, message, clear_pairs, model_folder, tmp_path
):
    config = QUICK.model_copy(update={"weight_by": "confidence"})
    with pytest.raises(DataError, match=message):
        run(clear_pairs.with_columns(**confidence), model_folder, tmp_path, config)


def test_bf16_without_cuda_is_refused(clear_pairs, model_folder, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    config = QUICK.model_copy(update={"precision": "bf16"})
    with pytest.raises(ConfigError, match="bf16 was asked for without a CUDA device"):
        run(clear_pairs, model_folder, tmp_path, config)


def test_each_step_is_one_line(clear_pairs, model_folder, tmp_path):
    lines = []
    result = run(clear_pairs.head(12), model_folder, tmp_path, note=lines.append)
    assert len(lines) == result.steps == 6
    assert lines[0] == "loss 0.693  margin +0.00  accuracy 0%"
    assert lines[-1].startswith(f"loss {values(result, 'loss')[-1]:.3f}  margin +")
    assert lines[-1].endswith(f"%  KL {values(result, 'kl')[-1]:.2f}")


def test_metrics_frame_leaves_out_the_summary():
    history = [
        {"loss": 0.5, "epoch": 0.5, "step": 1},
        {"train_runtime": 3.2, "train_loss": 0.5, "total_flos": 1.0, "epoch": 1.0, "step": 1},
    ]
    assert metrics_frame(history).rows() == [(1, "epoch", 0.5), (1, "loss", 0.5)]


def test_training_config_documents_every_setting():
    assert issubclass(DPOTrainingConfig, Config)
    assert all(field.description for field in DPOTrainingConfig.model_fields.values())
