"""Checks that fail end a training with the policy of the last one that passed."""

import copy
import json
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from stages.errors import DataError, ModelError
from trainer.checkpoints import last_complete
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
from trainer.heldout import split
from trainer.kl import KLEstimator, kl_of_tokens
from trainer.stopping import StoppingConfig, failed_check, warnings_of

EVERY = 2


def history(*steps):
    """Entries of steps from 1: (KL, held-out margin, chosen drift), None where not measured."""
    names = ("kl", "heldout/margins", "drift/chosen")
    return [
        {"step": step, **{name: v for name, v in zip(names, values, strict=True) if v is not None}}
        for step, values in enumerate(steps, 1)
    ]


FLAT = (None, None, 0.0)


@pytest.mark.parametrize(
    ("settings", "steps", "reason"),
    [
        ({}, [FLAT, (9.9, None, 0.0)], None),
        ({}, [FLAT, (10.1, None, 0.0)], "KL to the reference 10.1 nats is above the budget 10"),
        ({"kl_budget_nats": None}, [FLAT, (99.0, None, 0.0)], None),
        # Held-out margin: nothing to compare with at the first check.
        ({"minimum_margin_gain": 0.1}, [FLAT, (None, 0.0, 0.0)], None),
        ({"minimum_margin_gain": 0.1}, [FLAT, (None, 0.5, 0.0), FLAT, (None, 0.7, 0.0)], None),
        (
            {"minimum_margin_gain": 0.1},
            [FLAT, (None, 0.5, 0.0), FLAT, (None, 0.55, 0.0)],
            "changed by +0.05 since the last check, less than 0.1",
        ),
        # The last check may come after fewer steps: here step 3, one step after the check at 2.
        (
            {"minimum_margin_gain": 0.1},
            [FLAT, (None, 0.5, 0.0), (None, 0.5, 0.0)],
            "changed by +0 since",
        ),
        # Mean drift since the last check, (-3 - 5) / 2 and not that of all four steps.
        (
            {"maximum_chosen_fall_nats": 3.5},
            [(None, None, -1.0)] * 2 + [(None, None, -3.0), (None, None, -5.0)],
            "fell by 4 nats on average, more than 3.5",
        ),
        ({"maximum_chosen_fall_nats": 4.5}, [(None, None, -3.0), (None, None, -5.0)], None),
    ],
)
def test_a_check_fails_beyond_its_limit(settings, steps, reason):
    share = {"heldout_share": 0.5} if "minimum_margin_gain" in settings else {}
    found = failed_check(history(*steps), StoppingConfig(**settings, **share), EVERY)
    assert (found is None) == (reason is None), found
    assert reason is None or reason in found


def test_kl_above_the_warning_is_said():
    (sentence,) = warnings_of(history(FLAT, (4.9, None, 0), FLAT, (5.1, None, 0)), StoppingConfig())
    assert "5.1 nats at step 4, above 5" in sentence


def test_kl_of_tokens_is_schulmans_k3():
    # Ratios reference / policy of 1/2 and 2: (1/2 - 1 + log 2) + (2 - 1 - log 2) = 1/2.
    policy = torch.tensor([0.5, 0.25]).log()
    reference = torch.tensor([0.25, 0.5]).log()
    assert kl_of_tokens(policy, reference) == pytest.approx(0.5)
    assert kl_of_tokens(policy, policy) == 0


def test_the_estimate_is_near_the_exact_kl(model_folder, other_model_folder):
    """One token a response, so that the KL of the two models can be summed over the vocabulary."""
    from transformers import AutoModelForCausalLM

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    policy, reference = load(model_folder), load(other_model_folder)
    prompt = [3, 40, 4]
    with torch.no_grad():
        p, q = (
            m(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for m in (policy, reference)
        )
    exact = (p.exp() * (p - q)).sum().item()
    assert exact > 0.05
    trainer = SimpleNamespace(
        train_dataset={"prompt_ids": [prompt]}, data_collator=SimpleNamespace(pad_token_id=0)
    )
    config = DPOTrainingConfig(stopping=StoppingConfig(kl_max_new_tokens=1))
    kl = KLEstimator(trainer, (copy.deepcopy, lambda _: load(other_model_folder)), config, 64)
    assert kl.prompts == [prompt]
    kl.prompts = [prompt] * 400
    assert kl.estimate(policy, step=1) == pytest.approx(exact, rel=0.2)
    kl.prompts = [prompt] * 5
    assert kl.estimate(reference, step=1) == pytest.approx(0, abs=1e-6)
    state = torch.random.get_rng_state()
    assert kl.estimate(policy, step=2) == kl.estimate(policy, step=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_responses_are_sampled_behind_their_prompts_and_end_with_eos(model_folder):
    from transformers import AutoModelForCausalLM, GenerationConfig

    policy = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    policy.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    prompts = [[3, 40, 4], [3, 50, 60, 70, 4]] * 100
    trainer = SimpleNamespace(
        train_dataset={"prompt_ids": prompts}, data_collator=SimpleNamespace(pad_token_id=0)
    )
    kl = KLEstimator(trainer, (None, None), DPOTrainingConfig(), 45)
    assert sorted(kl.prompts) == sorted(prompts[:2])
    kl.prompts = prompts
    responses = kl._responses(policy)
    assert [row[0, :length].tolist() for row, length in responses] == prompts
    answers = [row[0, length:].tolist() for row, length in responses]
    assert max(map(len, answers)) <= 40
    ended = [answer for answer in answers if len(answer) < 40]
    assert ended
    assert all(answer.index(2) == len(answer) - 1 for answer in ended)


def test_a_split_keeps_prompts_apart_and_depends_on_nothing_else(clear_pairs):
    twice = pl.concat([clear_pairs, clear_pairs.with_columns(pair_id=pl.col("pair_id") + "b")])
    train, heldout = split(twice, 0.25, seed=0)
    assert (train.height, heldout.height) == (24, 8)
    asked = [set(part["prompt"].list.first().struct.field("content")) for part in (train, heldout)]
    assert not asked[0] & asked[1]
    again = split(twice.reverse(), 0.25, seed=0)[1]
    assert set(again["pair_id"]) == set(heldout["pair_id"])
    assert set(split(twice, 0.25, seed=1)[1]["pair_id"]) != set(heldout["pair_id"])
    with pytest.raises(DataError, match="leaves no row on one side"):
        split(clear_pairs, 0.01, seed=0)


def training(**stopping):
    """8 steps on the 16 pairs, less those kept aside; a check every 2."""
    quiet = {"kl_samples": 0, **stopping}
    return DPOTrainingConfig(
        learning_rate=2e-3,
        batch_size=4,
        epochs=2,
        max_length_tokens=64,
        checkpoint_every_steps=EVERY,
        stopping=StoppingConfig(**quiet),
        threads=1,
    )


class Killed(BaseException):
    """Stands for a kill."""


def test_a_training_stopped_has_the_last_policy_that_passed(clear_pairs, model_folder, tmp_path):
    from safetensors.torch import load_file

    def run(name, config, progress):
        folders = tmp_path / name / "model", tmp_path / name / "checkpoints"
        return train_dpo(clear_pairs, model_folder, model_folder, config, *folders, progress)

    of_check = {}

    def keep(step, total):
        if step == 5 and total == 6:
            (checkpoints,) = (tmp_path / "whole" / "checkpoints").iterdir()
            of_check.update(load_file(last_complete(checkpoints) / "model.safetensors"))

    whole = run("whole", training(heldout_share=0.25), keep)
    heldout = whole.metrics.filter(metric="heldout/margins")
    assert heldout["step"].to_list() == [2, 4, 6]
    gains = dict(zip([4, 6], heldout["value"].diff()[1:], strict=True))
    assert gains[4] > 0.1, "the clear preference carries over to other prompts"
    limit = gains[6] + 1e-6
    assert limit < gains[4], "only the last check's gain, at a small learning rate, is below it"

    def kill(step, total):
        if step == total == 6:
            raise Killed

    config = training(heldout_share=0.25, minimum_margin_gain=limit)
    with pytest.raises(Killed):
        run("stopped", config, kill)
    stopped = run("stopped", config, None)
    manifest = json.loads((stopped.model_path / "manifest.json").read_text())
    assert (stopped.steps, stopped.pairs, manifest["heldout_pairs"]) == (4, 12, 4)
    assert manifest["stopped"]["step"] == 6
    assert "held-out margin changed by" in manifest["stopped"]["reason"]
    ours, last = (load_file(r.model_path / "model.safetensors") for r in (stopped, whole))
    assert all(torch.equal(ours[name], of_check[name]) for name in ours)
    assert any(not torch.equal(ours[name], last[name]) for name in ours)


def test_a_first_check_that_fails_leaves_no_policy(clear_pairs, model_folder, tmp_path):
    config = training(kl_samples=2, kl_max_new_tokens=8, kl_budget_nats=1e-9)
    config = config.model_copy(update={"warmup_ratio": 0.0})
    with pytest.raises(ModelError, match=r"first check, step 2: KL .* above the budget 1e-09"):
        train_dpo(
            clear_pairs,
            model_folder,
            model_folder,
            config,
            tmp_path / "model",
            tmp_path / "checkpoints",
        )
    assert not (tmp_path / "model").exists()
