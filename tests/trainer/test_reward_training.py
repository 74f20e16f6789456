"""Reward models: the loss by hand, the held-out numbers, and scoring with the result."""

import json
import math
import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from stages.errors import ConfigError, DataError, ModelError
from stages.reward_model import RewardModel
from tests.trainer.test_adapters import logits
from tests.trainer.test_dpo import Killed, stop_at
from trainer.adapters import AdapterConfig, lora_config
from trainer.heldout import split
from trainer.reward_training import RewardObjective, _interval
from trainer.reward_training_settings import RewardTrainingConfig
from trainer.single_model import train_model

QUICK = RewardTrainingConfig(
    learning_rate=1e-3,
    batch_size=4,
    gradient_accumulation_steps=2,
    epochs=3,
    max_length_tokens=64,
    checkpoint_every_steps=3,
    heldout_share=0.25,
    resamples=200,
    threads=1,
)
"""9 steps on 12 of 16 pairs, checkpoints at 3, 6 and 9."""


def run(rows, model, folder, config=QUICK, **rest):
    return train_model(
        RewardObjective(config), rows, model, folder / "model", folder / "checkpoints", **rest
    )


@pytest.fixture(scope="module")
def eos_pads(model_folder, tmp_path_factory):
    """The model with a tokenizer that pads with EOS, as many have it."""
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("models") / "eos")
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        text = (folder / name).read_text()
        text = text.replace('"pad_token": "<|pad|>"', '"pad_token": "<|eos|>"')
        (folder / name).write_text(text.replace('"pad_token_id": 0', '"pad_token_id": 2'))
    return folder


@pytest.fixture(scope="module")
def trained(clear_pairs, eos_pads, tmp_path_factory):
    return run(clear_pairs, eos_pads, tmp_path_factory.mktemp("reward"))


def scored_margins(folder, rows):
    """The reward of chosen over rejected, as a run's scorer gives it."""
    model = RewardModel(folder)
    rewards = [
        [
            outcome.score
            for outcome in model.score(
                [
                    [*prompt, {"role": "assistant", "content": answer}]
                    for prompt, answer in rows.select("prompt", side).iter_rows()
                ]
            )
        ]
        for side in ("chosen", "rejected")
    ]
    return [chosen - rejected for chosen, rejected in zip(*rewards, strict=True)]


def test_the_result_scores_answers_and_its_margins_are_the_trainers(trained, clear_pairs):
    _, heldout = split(clear_pairs, 0.25, 0)
    after = trained.manifest["heldout"]["after"]
    margins = scored_margins(trained.model_path, heldout)
    assert sum(margins) / 4 == pytest.approx(after["margin"], abs=1e-5)
    assert [margin > 0 for margin in margins] == [True] * 4
    assert (after["accuracy"], after["accuracy_low"], after["accuracy_high"]) == (1.0, 1.0, 1.0)
    assert after["margin"] > 1.0
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / 4
    assert after["loss"] == pytest.approx(expected, abs=1e-5)
    assert RewardModel(trained.model_path, output="reward").output == 0


def test_the_result_says_how_it_was_made(trained, clear_pairs):
    manifest = trained.manifest
    assert (manifest["rows"], manifest["heldout_rows"], manifest["steps"]) == (12, 4, 9)
    assert trained.metrics.filter(metric="accuracy")["value"].to_list()[-1] == 1.0
    card = (trained.model_path / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "| upper end of its 95 % interval |" in card
    assert json.loads((trained.model_path / "config.json").read_text())["pad_token_id"] == 2


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        # -log sigmoid(r_w - r_l) of rewards (2, 1) and (0, 1): margins 1 and -1
        ({}, (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2),
        # margins to beat of 0.5 and -2 leave 0.5 and 1
        ({"use_margin": True}, (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1))) / 2),
        # 0.1 times the mean of (2 + 1)^2 and (0 + 1)^2
        (
            {"center_rewards_coefficient": 0.1},
            (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2 + 0.5,
        ),
    ],
)
def test_the_loss_is_bradley_and_terrys(settings, loss, clear_pairs, model_folder, tmp_path):
    from types import SimpleNamespace

    from transformers import AutoTokenizer

    config = QUICK.model_copy(update=settings)
    objective = RewardObjective(config)
    rows = clear_pairs.head(2).with_columns(margin=pl.Series([0.5, -2.0]))
    rows = objective.sorted(rows)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = objective.load(model_folder)
    trainer = objective.trainer(model, tokenizer, rows, rows.clear(), tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(2)])

    def rewards(**arguments):
        assert set(arguments) == {"input_ids", "attention_mask", "use_cache"}
        return SimpleNamespace(logits=torch.tensor([[2.0], [0.0], [1.0], [1.0]]))

    assert trainer.compute_loss(rewards, batch).item() == pytest.approx(loss, abs=1e-6)


def test_stopped_and_resumed_has_the_same_bits(clear_pairs, eos_pads, trained, tmp_path):
    with pytest.raises(Killed):
        run(clear_pairs, eos_pads, tmp_path, progress=stop_at(5))
    resumed = run(clear_pairs, eos_pads, tmp_path)
    assert resumed.manifest["weights_hash"] == trained.manifest["weights_hash"]
    assert resumed.metrics.equals(trained.metrics)


def test_a_classifier_is_trained_on_with_its_head(trained, clear_pairs, tmp_path):
    config = QUICK.model_copy(update={"epochs": 0.4})
    result = run(clear_pairs, trained.model_path, tmp_path, config)
    after = trained.manifest["heldout"]["after"]
    assert result.manifest["heldout"]["before"]["margin"] == pytest.approx(
        after["margin"], abs=1e-6
    )
    assert result.manifest["steps"] == 2


def test_adapters_and_a_whole_head_are_trained_and_merged(clear_pairs, model_folder, tmp_path):
    """Stopped and resumed to the same bits, and the same rewards as with the adapters beside."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    settings = {"adapter": AdapterConfig(rank=4, alpha=8), "learning_rate": 1e-2}
    config = QUICK.model_copy(update=settings)
    whole = run(clear_pairs, model_folder, tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, config, progress=stop_at(5))
    result = run(clear_pairs, model_folder, tmp_path, config)
    assert result.manifest["weights_hash"] == whole.manifest["weights_hash"]
    fresh = RewardObjective(config).load(model_folder)
    head, before = fresh.score.weight.clone(), logits(fresh)
    adapted = PeftModel.from_pretrained(fresh, result.model_path / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(result.model_path)
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-5, rtol=0)
    assert (logits(merged) - before).abs().max() > 0.1
    assert not torch.equal(merged.score.weight, head)
    known = load_file(result.model_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in known} == {"lora_A", "lora_B", "score"}
    margins = scored_margins(result.model_path, split(clear_pairs, 0.25, 0)[1])
    assert sum(margins) / 4 == pytest.approx(result.manifest["heldout"]["after"]["margin"])
    with pytest.raises(ConfigError, match="'qlora' is not for reward models"):
        RewardTrainingConfig.checked({"adapter": {"kind": "qlora"}})
    with pytest.raises(ConfigError, match=r"no linear layers called \['score'\]"):
        lora_config(AdapterConfig(target_modules=("score",)), fresh, "SEQ_CLS")


def test_what_is_no_reward_model_is_refused(clear_pairs, trained, model_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    two = shutil.copytree(model_folder, tmp_path / "two")
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
    model.save_pretrained(two)
    with pytest.raises(ModelError, match="classifier has 2 outputs"):
        run(clear_pairs, two, tmp_path)
    lacking = shutil.copytree(model_folder, tmp_path / "lacking")
    config = json.loads((lacking / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (lacking / "config.json").write_text(json.dumps({**config, "num_labels": 1}))
    with pytest.raises(ModelError, match=r"weights lack score\.weight"):
        run(clear_pairs, lacking, tmp_path)


def test_margins_that_are_asked_for_are_needed(clear_pairs, model_folder, tmp_path):
    config = QUICK.model_copy(update={"use_margin": True})
    with pytest.raises(DataError, match="asks for the column 'margin'"):
        run(clear_pairs, model_folder, tmp_path, config)
    some = clear_pairs.with_columns(margin=pl.when(pl.int_range(pl.len()) > 1).then(1.0))
    with pytest.raises(DataError, match="2 of 16 pairs have no margin, such as pair_00"):
        run(some, model_folder, tmp_path, config)
    equal = clear_pairs.with_columns(rejected="chosen")
    with pytest.raises(DataError, match=r"reward_model data cannot .* 16 pairs, such as pair_"):
        run(equal, model_folder, tmp_path)


def test_the_interval_is_over_prompts():
    """Two prompts, one with three pairs that are right: resampled they give 0, 3/4 or 1."""
    keys = pl.Series(["a", "a", "a", "b"])
    right = pl.Series([1.0, 1.0, 1.0, 0.0]).to_numpy()
    assert _interval(right, keys, QUICK) == (0.0, 1.0)
    assert _interval(right[:3], keys[:3], QUICK) == (1.0, 1.0)
