"""Each loss against its formula, worked out on fixed log-probabilities."""

import math
from pathlib import Path

import pytest
import torch

from flows.configuration import TrainingFileConfig, load_config
from trainer.dpo_settings import DPOTrainingConfig
from trainer.trl_trainer import RunCallback, build_trainer

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))

# log pi of each token; log pi_ref of each answer. In nats: pi(y_w) / ref(y_w) = e^0.5,
# pi(y_l) / ref(y_l) = e^-1.5, so that beta 0.5 gives rewards of 0.25 and -0.75 and a margin of 1.
CHOSEN, REJECTED = [-0.5, -1.0], [-1.0, -1.0, -0.5, -1.5]
REFERENCE = {"ref_chosen_logps": [-2.0], "ref_rejected_logps": [-2.5]}
BETA, MARGIN = 0.5, 1.0
WIN, LOSE = 0.5, -1.5


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def ce(h):
    """-log sigmoid(h)."""
    return -log_sigmoid(h)


FORMULAS = {
    "dpo": ({}, ce(MARGIN)),
    "cdpo": ({"label_smoothing": 0.1}, 0.9 * ce(MARGIN) + 0.1 * ce(-MARGIN)),
    "robust": (
        {"loss_type": "robust", "label_smoothing": 0.1},
        (0.9 * ce(MARGIN) - 0.1 * ce(-MARGIN)) / 0.8,
    ),
    # (mean log-ratio of y_w 0.25, of y_l -0.375) - 1 / (2 beta)
    "ipo": ({"loss_type": "ipo"}, (0.25 + 0.375 - 1.0) ** 2),
    "length-normalised": ({"loss_type": "sigmoid_norm"}, ce(BETA * 0.625)),
    "hinge": ({"loss_type": "hinge"}, max(0.0, 1 - MARGIN)),
    "apo-zero": ({"loss_type": "apo_zero"}, 1 - sigmoid(BETA * WIN) + sigmoid(BETA * LOSE)),
    "apo-down": ({"loss_type": "apo_down"}, sigmoid(BETA * WIN) + 1 - sigmoid(MARGIN)),
    "exo": (
        {"loss_type": "exo_pair", "label_smoothing": 0.001},
        sigmoid(1) * (log_sigmoid(1) - math.log(0.999))
        + sigmoid(-1) * (log_sigmoid(-1) - math.log(0.001)),
    ),
    "nca": (
        {"loss_type": "nca_pair"},
        ce(BETA * WIN) + 0.5 * ce(-BETA * WIN) + 0.5 * ce(-BETA * LOSE),
    ),
    "sppo": ({"loss_type": "sppo_hard"}, (WIN - 1) ** 2 + (LOSE + 1) ** 2),
    # One pair a micro-batch: nothing is sorted.
    "aot": ({"loss_type": "aot"}, ce(MARGIN)),
    # Modulation sigmoid(h / 0.05), 1 - 2e-9 at h = 1.
    "discopop": ({"loss_type": "discopop"}, math.exp(-1)),
    # The chosen's mean token log-probability is -0.75.
    "dpo-sft": ({"sft_share": 0.1}, 0.9 * ce(MARGIN) + 0.1 * 0.75),
    # The rejected's last two tokens count half: log-ratio -2 - 1 + 2.5 = -0.5.
    "length-desensitised": ({"ld_alpha": 0.5}, ce(BETA * (WIN + 0.5))),
    "forward-kl": ({"f_divergence": "forward_kl"}, ce(BETA * (math.exp(1.5) - math.exp(-0.5)))),
    "js": (
        {"f_divergence": "js_divergence"},
        ce(BETA * (log_sigmoid(WIN) - log_sigmoid(LOSE))),
    ),
    # f'(t) is the power -0.5 of t less 1, over -0.5: 2 less 2 over the root of t.
    "alpha": (
        {"f_divergence": "alpha_divergence"},
        ce(BETA * 2 * (math.exp(0.75) - math.exp(-0.25))),
    ),
    "weighted": ({"weight_by": "confidence"}, ce(MARGIN)),
    # log pi(y) of a token is -0.75 for y_w, -1 for y_l; of the answers -1.5 and -4. Without the
    # reference: beta times the difference, less gamma = beta / 2.
    "simpo": ({"loss_type": "simpo", "gamma_beta_ratio": 0.5}, ce(BETA * 0.25 - BETA * 0.5)),
    "cpo": ({"loss_type": "cpo", "sft_share": 0.5}, 0.5 * ce(BETA * 2.5) + 0.5 * 0.75),
    # Odds p / (1 - p) of p = e^-0.75 and e^-1.
    "orpo": (
        {"loss_type": "orpo"},
        0.75 + BETA * ce(0.25 - math.log((1 - math.exp(-0.75)) / (1 - math.exp(-1)))),
    ),
}

NO_LOSS_OF_PAIRS = {"kto", "step-dpo", "lora", "qlora"}
"""Files whose losses are the subjects of other tests."""


class FixedOutputs:
    """In a model's place: the log-probabilities above, as TRL's fused head returns them."""

    def __init__(self):
        self.log_probs = torch.zeros(2, 6)
        self.log_probs[0, 1:3] = torch.tensor(CHOSEN)
        self.log_probs[1, 1:5] = torch.tensor(REJECTED)
        self.log_probs.requires_grad_()
        self.entropy = self.mean_logits = torch.zeros(2, 6)
        self.is_top1 = torch.zeros(2, 6, dtype=torch.bool)

    def __call__(self, **_):
        return self


def inputs():
    """Two prompt tokens, then answers of two and four, padded to seven."""
    mask = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    reference = {name: torch.tensor(value) for name, value in REFERENCE.items()}
    ids = torch.ones_like(mask)
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": mask, **reference}


@pytest.fixture(scope="module")
def trainer_of(clear_pairs, model_folder, tmp_path_factory):
    """A function: TRL's trainer for a configuration."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = tuple(AutoModelForCausalLM.from_pretrained(model_folder) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def make(rows, **settings):
        config = DPOTrainingConfig(beta=BETA, max_length_tokens=64, batch_size=2, **settings)
        folder = tmp_path_factory.mktemp("losses")
        given = (models[0], None) if config.reference_free else models
        trainer = build_trainer(given, tokenizer, rows, config, RunCallback(folder, None))
        trainer.precompute_ref_logps = True
        trainer.model.train()
        return trainer

    return make


@pytest.mark.parametrize(("settings", "expected"), FORMULAS.values(), ids=FORMULAS)
def test_loss_is_its_formula(settings, expected, trainer_of, clear_pairs):
    import polars as pl

    rows = clear_pairs.head(2).with_columns(confidence=pl.lit(0.8))
    loss = trainer_of(rows, **settings).compute_loss(FixedOutputs(), inputs())
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_every_configuration_file_is_one_of_these_losses_and_says_when_to_use_it():
    assert {path.stem for path in CONFIGS} - NO_LOSS_OF_PAIRS == set(FORMULAS)
    for path in CONFIGS:
        assert path.read_text().startswith("# Use it "), path
        if path.stem in NO_LOSS_OF_PAIRS:
            continue
        config = load_config(path, kind=TrainingFileConfig).training
        settings = FORMULAS[path.stem][0]
        chosen = config.model_dump(include=set(settings), exclude={"label_smoothing", "ld_alpha"})
        assert chosen == {name: settings[name] for name in chosen}
        assert (config.label_smoothing == 0) == ("label_smoothing" not in settings)


@pytest.mark.parametrize("column", ["confidence", "length_weight"])
def test_a_pairs_weight_multiplies_its_gradient(column, trainer_of, clear_pairs):
    """Weights 0.5 and 1.0 are scaled to a mean of 1: 2/3 and 4/3."""
    import polars as pl

    rows = clear_pairs.head(2).with_columns(pl.Series(column, [0.5, 1.0]))
    trainer = trainer_of(rows, weight_by=column, sft_share=0.1)
    examples = [trainer.train_dataset[index] for index in range(2)]
    assert [example["weight"] for example in examples] == pytest.approx([2 / 3, 4 / 3])

    def gradients(batch, weights):
        trainer.model.zero_grad()
        batch = {name: value for name, value in batch.items() if name != "weight"}
        if weights is not None:
            batch["weight"] = torch.tensor(weights)
        reference = trainer.compute_ref_log_probs(trainer.ref_model, batch)
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = reference
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return [parameter.grad.clone() for parameter in trainer.model.parameters()]

    both = trainer.data_collator(examples)
    first, second, weighted = (
        gradients(both, weights) for weights in ([1.0, 0.0], [0.0, 1.0], both["weight"].tolist())
    )
    plain = gradients(both, None)
    for a, b, unweighted, found in zip(first, second, plain, weighted, strict=True):
        torch.testing.assert_close(a + b, unweighted, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found, a * 2 / 3 + b * 4 / 3, atol=1e-6, rtol=1e-4)
