"""Losses without a reference go through the one training path."""

import json
import math

import pytest

from stages.content_ids import weights_hash
from stages.errors import ConfigError
from trainer import dpo
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
from trainer.stopping import StoppingConfig

SIMPO = DPOTrainingConfig(
    loss_type="simpo",
    beta=2.0,
    learning_rate=1e-3,
    batch_size=4,
    epochs=2,
    max_length_tokens=64,
    checkpoint_every_steps=3,
    stopping=StoppingConfig(kl_samples=2, kl_max_new_tokens=3, heldout_share=0.25),
    threads=1,
)
"""6 steps on the 12 pairs trained on, checks at 3 and 6."""


def run(rows, model, folder, config=SIMPO, reference=None, **rest):
    folders = folder / "model", folder / "checkpoints"
    return train_dpo(rows, model, reference or model, config, *folders, **rest)


def values(result, metric):
    return result.metrics.filter(metric=metric).sort("step")["value"].to_list()


@pytest.fixture(scope="module")
def simpo(clear_pairs, model_folder, tmp_path_factory):
    return run(clear_pairs, model_folder, tmp_path_factory.mktemp("simpo"))


def test_it_learns_the_preference_per_token(simpo):
    margins = values(simpo, "rewards/margins")
    assert margins[-1] > margins[0] + 0.1
    assert values(simpo, "loss")[-1] < values(simpo, "loss")[0]
    assert len(values(simpo, "kl")) == len(values(simpo, "heldout/margins")) == 2
    assert values(simpo, "heldout/margins")[-1] > values(simpo, "heldout/margins")[0]
    assert not values(simpo, "drift/chosen"), "there is nothing to drift from"


def test_the_first_reward_is_beta_times_the_mean_token(simpo):
    chosen, reward = (values(simpo, name)[0] for name in ("logps/chosen", "rewards/chosen"))
    tokens = values(simpo, "completion_tokens/chosen")[0]
    # 6 or so tokens an answer: the mean of quotients is near the quotient of means.
    assert reward == pytest.approx(2.0 * chosen / tokens, rel=0.05)


def test_no_reference_is_loaded_or_computed(clear_pairs, model_folder, tmp_path, monkeypatch):
    loaded, load = [], dpo.load_language_model
    monkeypatch.setattr(
        dpo, "load_language_model", lambda folder: loaded.append(folder) or load(folder)
    )
    unmeasured = StoppingConfig(kl_samples=0)
    config = SIMPO.model_copy(update={"loss_type": "orpo", "stopping": unmeasured})
    result = run(clear_pairs.head(8), model_folder, tmp_path, config, reference=tmp_path / "none")
    assert loaded == [], "the policy is loaded otherwise"
    assert not (tmp_path / "reference-log-probs").exists()
    assert all(math.isfinite(value) for value in result.metrics["value"])
    manifest = json.loads((result.model_path / "manifest.json").read_text())
    assert manifest["reference_weights_hash"] == weights_hash(model_folder), "where it started"
    assert manifest["computation"] == "shared prompts"
    card = (result.model_path / "README.md").read_text()
    assert "| reference weights | none: the loss has no reference |" in card


def test_both_ways_of_computing_agree(simpo, clear_pairs, model_folder, tmp_path):
    slow = run(clear_pairs, model_folder, tmp_path, SIMPO.model_copy(update={"fast_path": "off"}))
    assert values(slow, "loss") == pytest.approx(values(simpo, "loss"), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "simpo"}, "needs beta, such as 2"),
        ({"loss_type": "cpo", "ld_alpha": 0.0}, "ld_alpha would be ignored by loss_type 'cpo'"),
        ({"loss_type": "orpo", "sft_share": 0.1}, "sft_share would be ignored"),
        ({"loss_type": "orpo", "label_smoothing": 0.1}, "label_smoothing 0.1 would be ignored"),
        ({"loss_type": "cpo", "f_divergence": "forward_kl"}, "no meaning for loss_type 'cpo'"),
        (
            {"loss_type": "cpo", "stopping": {"maximum_chosen_fall_nats": 5.0}},
            "stopping.maximum_chosen_fall_nats would be ignored",
        ),
        ({"loss_type": "kto", "sft_share": 0.1}, "sft_share would be ignored by loss_type 'kto'"),
        ({"loss_type": "kto", "batch_size": 4, "gradient_accumulation_steps": 4}, "two answers"),
    ],
)
def test_what_the_loss_would_not_read_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DPOTrainingConfig.checked(settings)
