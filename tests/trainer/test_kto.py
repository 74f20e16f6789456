"""KTO on single answers: its formula, its batches, and a training that resumes."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from stages.errors import DataError
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
from trainer.rows import rows_to_train
from trainer.step_metrics import SPEEDS
from trainer.stopping import StoppingConfig
from trainer.unpaired_checks import check_answers

KTO = DPOTrainingConfig(
    loss_type="kto",
    learning_rate=1e-3,
    batch_size=4,
    epochs=2,
    max_length_tokens=64,
    checkpoint_every_steps=3,
    stopping=StoppingConfig(kl_samples=2, kl_max_new_tokens=3),
    threads=1,
)
"""2 steps an epoch on 5 answers: the last micro-batch holds one. Checks at 3 and 4."""


CPU = Path(__file__).resolve().parents[2] / "configs/accelerate/cpu.yaml"


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def answers(clear_pairs):
    """Three good answers and two bad ones."""
    good = clear_pairs.head(3).select("prompt", completion="chosen", label=pl.lit(value=True))
    bad = clear_pairs.tail(2).select("prompt", completion="rejected", label=pl.lit(value=False))
    rows = pl.concat([good, bad])
    return rows.with_columns(answer_id=pl.format("answer_{}", pl.int_range(pl.len())))


def run(rows, model, folder, config=KTO, **rest):
    return train_dpo(rows, model, model, config, folder / "model", folder / "checkpoints", **rest)


def values(result, metric):
    return result.metrics.filter(metric=metric).sort("step")["value"].to_list()


@pytest.fixture(scope="module")
def trained(answers, model_folder, tmp_path_factory):
    return run(answers, model_folder, tmp_path_factory.mktemp("kto"))


@pytest.fixture(scope="module")
def trainer(answers, model_folder, tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.kto_trainer import build_kto_trainer
    from trainer.trl_trainer import RunCallback

    models = tuple(AutoModelForCausalLM.from_pretrained(model_folder) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    callback = RunCallback(tmp_path_factory.mktemp("trainer"), None)
    return build_kto_trainer(models, tokenizer, rows_to_train(answers, KTO), KTO, callback)


class FixedOutputs:
    """In a model's place: first the mismatched answers' log-probabilities, then the answers'."""

    def __init__(self, *log_probs):
        self.entropy = self.mean_logits = torch.zeros(2, 3)
        self.answers = iter(log_probs)

    def __call__(self, **_):
        self.log_probs = torch.tensor(next(self.answers), requires_grad=True)
        return self


def test_loss_is_equation_7_of_ethayarajh(trainer):
    """Log-ratios 2 of the good answer, -1 of the bad; the reference point is (1 + 0) / 2."""
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]])
    batch = {
        **dict.fromkeys(("input_ids", "attention_mask", "completion_mask"), mask),
        **{f"KL_{name}": mask for name in ("input_ids", "attention_mask", "completion_mask")},
        "label": torch.tensor([True, False]),
        "ref_logps": torch.tensor([-3.5, -1.0]),
        "ref_KL_logps": torch.tensor([-3.0, -4.0]),
    }
    model = FixedOutputs(
        [[-1.0, -0.5, -0.5], [-3.0, -1.0, 0.0]], [[-0.5, -0.5, -0.5], [-1.0, -1.0, 0.0]]
    )
    trainer.precompute_ref_logps = True
    trainer.model.train()
    loss = trainer.compute_loss(model, batch)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    # beta 0.1; three good answers weigh 1 each, two bad ones 3 / 2.
    good, bad = 1 - sigmoid(0.1 * (2.0 - 0.5)), 1 - sigmoid(0.1 * (0.5 + 1.0))
    assert loss.item() == pytest.approx((good + bad * 3 / 2) / 2, abs=1e-6)
    assert trainer._metrics["train"]["reference_point"] == [0.5]


@pytest.mark.parametrize(
    ("good", "bad", "ratio", "expected"),
    [
        (5, 5, 1.0, (1.0, 1.0)),
        (1, 10, 1.0, (10.0, 1.0)),  # the paper's example: lambda_D from 10 ...
        (1, 10, 4 / 3, (40 / 3, 1.0)),  # ... to 13.33
        (10, 5, 1.0, (1.0, 2.0)),
    ],
)
def test_the_rarer_label_weighs_more(good, bad, ratio, expected):
    from trainer.kto_trainer import weights_of_labels

    labels = pl.Series([True] * good + [False] * bad)
    assert weights_of_labels(labels, ratio) == pytest.approx(expected)


def test_no_answer_is_its_own_mismatch(trainer):
    """Within a batch of four each has the one before's; the fifth, alone, has the first's."""
    own = trainer.train_dataset["completion_ids"]
    other = trainer.train_dataset["KL_completion_ids"]
    assert list(other[:4]) == [own[3], *own[:3]]
    assert other[4] == own[0]


@pytest.mark.slow
def test_two_processes_train_as_one_does(clear_pairs, model_folder, tmp_path):
    """Gloo on a CPU. Each has half a micro-batch; the mismatched answers are the whole one's."""
    good = clear_pairs.head(5).select("prompt", completion="chosen", label=pl.lit(value=True))
    bad = clear_pairs.tail(3).select("prompt", completion="rejected", label=pl.lit(value=False))
    rows = pl.concat([good, bad]).with_columns(answer_id=pl.format("a{}", pl.int_range(pl.len())))
    one = run(rows, model_folder, tmp_path / "one")
    config = KTO.model_copy(update={"accelerate": CPU})
    two = run(rows, model_folder, tmp_path / "two", config)
    assert json.loads((two.model_path / "manifest.json").read_text())["processes"] == 2
    assert two.steps == one.steps == 4
    expected, found = (
        result.metrics.filter(~pl.col("metric").is_in(SPEEDS)).sort("step", "metric")
        for result in (one, two)
    )
    assert max(values(one, "reference_point")) > 0.1, "0 would tell nothing of the answers"
    assert found["metric"].to_list() == expected["metric"].to_list()
    assert found["value"].to_list() == pytest.approx(expected["value"].to_list(), abs=1e-5)
    weights, others = (load_file(each.model_path / "model.safetensors") for each in (one, two))
    assert max((weights[name] - others[name]).abs().max() for name in weights) <= 1e-5


def test_it_learns_and_says_so(trained, model_folder):
    manifest = json.loads((trained.model_path / "manifest.json").read_text())
    assert (manifest["unit"], trained.pairs, trained.steps) == ("answers", 5, 4)
    assert manifest["computation"] == "TRL's own: single answers share no prompt"
    rewards = {label: values(trained, f"rewards/{label}") for label in ("chosen", "rejected")}
    assert rewards["chosen"][0] == pytest.approx(0, abs=1e-5), "the policy is the reference"
    assert rewards["chosen"][-1] > rewards["rejected"][-1] + 0.1
    assert len(values(trained, "kl")) == 2, "at the checks"
    assert len(values(trained, "reference_point")) == 4, "at every step"
    assert min(values(trained, "answers_per_second")) > 0
    assert "| answers trained on | 5 |" in (trained.model_path / "README.md").read_text()


def test_killed_and_resumed_has_the_same_bits(trained, answers, model_folder, tmp_path):
    def kill_at_4(step, total):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        run(answers, model_folder, tmp_path, progress=kill_at_4)
    resumed = run(answers.reverse(), model_folder, tmp_path)
    assert resumed.weights_hash == trained.weights_hash
    timeless = ~pl.col("metric").is_in(SPEEDS)
    assert resumed.metrics.filter(timeless).equals(trained.metrics.filter(timeless))


def test_the_order_is_the_seeds(answers):
    orders = [
        rows_to_train(rows, KTO.model_copy(update={"seed": seed}))["answer_id"].to_list()
        for rows, seed in ((answers, 0), (answers.reverse(), 0), (answers, 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def problems(rows, tokenizer, limit=40, **rest):
    found = check_answers(rows, tokenizer, limit, **rest)
    return {
        row["check"]: (row["severity"], json.loads(row["examples"]))
        for row in found.iter_rows(named=True)
    }


def labelled(*rows):
    """Answers from (prompt, completion, label)."""
    return pl.DataFrame(
        [
            {
                "answer_id": f"a{place}",
                "prompt": [{"role": "user", "content": prompt}],
                "completion": completion,
                "label": label,
            }
            for place, (prompt, completion, label) in enumerate(rows)
        ]
    )


def test_a_message_without_a_text_is_found(tokenizer):
    rows = labelled(("1+1?", "2", True), ("1+2?", None, False)).with_columns(
        prompt=pl.Series(
            [[{"role": "user", "content": "1+1?"}], [{"role": "user", "content": None}]]
        ),
        completion=pl.lit("2"),
    )
    assert problems(rows, tokenizer) == {"missing_content": ("must", ["a1"])}


def test_what_is_wrong_with_answers_is_found(tokenizer, tokenizer_with):
    assert problems(labelled(("1+1?", "2", True), ("1+1?", "3", False)), tokenizer) == {}
    rows = labelled(
        ("1+1?", "2", True), ("1+1?", "2", False), ("2+2?", " ", True), ("x" * 30, "y" * 8, False)
    )
    assert problems(rows, tokenizer) == {
        "contradicting_labels": ("should", ["a0", "a1"]),
        "empty_completion": ("must", ["a2"]),
        "sequence_too_long": ("must", ["a3"]),
    }
    twice = pl.concat([rows.head(1), rows.head(1)])
    assert problems(twice, tokenizer_with("<|eos|>", "")) == {
        "duplicate_answer_id": ("must", ["a0"]),
        "template_without_eos": ("must", ["a0"]),
        "repeated_answer": ("should", ["a0"]),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": pl.lit(value=True)}, "5 of 5 answers are labelled good"),
        ({"label": pl.lit(1)}, "`label` holds Int"),
        ({"completion": pl.lit(None, pl.String)}, r"hold nulls: \{'completion': 5\}"),
    ],
)
def test_rows_that_kto_cannot_take_are_refused(change, message, answers):
    with pytest.raises(DataError, match=message):
        rows_to_train(answers.with_columns(**change), KTO)
    with pytest.raises(DataError, match=r"lack the columns \['label'\]"):
        rows_to_train(answers.drop("label"), KTO)
