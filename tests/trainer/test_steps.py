"""Step-level pairs: how answers are split, and which tokens are scored."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.errors import DataError
from tests.trainer.conftest import SPECIAL, TEMPLATE
from trainer.data_checks import check_preference_data
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
from trainer.rows import rows_to_train
from trainer.steps import step_pairs, step_tokens
from trainer.stopping import StoppingConfig

STEPS = DPOTrainingConfig(
    learning_rate=1e-3,
    batch_size=4,
    max_length_tokens=96,
    stopping=StoppingConfig(kl_samples=0),
    threads=1,
    steps={"separator": "\n"},
)


def pairs(*answers):
    """Rows from (chosen, rejected)."""
    return pl.DataFrame(
        {
            "pair_id": [f"p{place}" for place in range(len(answers))],
            "prompt": [[{"role": "user", "content": "2*3+1?"}]] * len(answers),
            "chosen": [chosen for chosen, _ in answers],
            "rejected": [rejected for _, rejected in answers],
        }
    )


SPLIT = {
    ("a\nb\nc", "a\nx\ny"): ("a\n", "b\n", "x\n", False, False),
    ("b\nc", "x"): ("", "b\n", "x", False, True),
    ("a\nb", "a\nb\nc"): ("a\n", "b", "b\n", True, False),
    ("a\nb\n", "a\nc\n"): ("a\n", "b\n", "c\n", True, True),
    # One stops where the other goes on: their texts are the same, the end of turn is not.
    ("a\n", "a\nb"): ("", "a\n", "a\n", True, False),
    ("same\nend", "same\nend"): ("same\n", "end", "end", True, True),
    ("\n\na", "\n\nb"): ("\n\n", "a", "b", True, True),
}


@pytest.mark.parametrize(("answers", "expected"), SPLIT.items())
def test_the_first_steps_that_differ_stay(answers, expected):
    columns = ("prefix", "chosen", "rejected", "chosen_ends", "rejected_ends")
    # A neighbour, so that one row's steps are not another's.
    assert step_pairs(pairs(("q", "r\ns"), answers), "\n").select(columns).row(1) == expected


texts = st.text("ab\n", min_size=1, max_size=8)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_what_is_left_begins_both_answers(answers):
    rows = pairs(*answers)
    split = step_pairs(rows, "\n")
    for whole, part in zip(rows.iter_rows(named=True), split.iter_rows(named=True), strict=True):
        for side in ("chosen", "rejected"):
            begun = part["prefix"] + part[side]
            assert whole[side].startswith(begun)
            assert part[f"{side}_ends"] == (whole[side] == begun)
        assert (
            part["chosen"] != part["rejected"]
            or whole["chosen"] == whole["rejected"]
            or (part["chosen_ends"] != part["rejected_ends"])
        )


def test_rows_that_are_steps_already_are_not_split():
    with pytest.raises(DataError, match="the rows have a `prefix`"):
        step_pairs(pairs(("a", "b")).with_columns(prefix=pl.lit("x")), "\n")


@pytest.fixture(scope="module")
def merging():
    """Bytes, with two newlines, and a newline and an s, as one token each."""
    newline = "\u010a"
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), newline * 2, newline + "s"]
    merges = [(newline, newline), (newline, "s")]
    vocabulary = {token: place for place, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def scored(tokenizer, **row):
    """What is given, and what is scored of chosen and rejected, as texts."""
    rows = pairs((row.pop("chosen"), row.pop("rejected"))).with_columns(
        **{name: pl.lit(value) for name, value in row.items()}
    )
    ((_, asked, *sides),) = step_tokens(rows, tokenizer)
    assert all(side[: len(asked)] == asked for side in sides)
    return [tokenizer.decode(asked), *(tokenizer.decode(side[len(asked) :]) for side in sides)]


PROMPT = "<|user|>2*3+1?<|assistant|>"


def test_the_prefix_is_given_and_a_step_that_goes_on_has_no_end(tokenizer):
    row = {"prefix": "one\n", "chosen": "two\n", "rejected": "3"}
    ends = {"chosen_ends": False, "rejected_ends": True}
    assert scored(tokenizer, **row, **ends) == [f"{PROMPT}one\n", "two\n", "3<|eos|>"]
    row["prefix"] = ""
    assert scored(tokenizer, **row, **ends) == [PROMPT, "two\n", "3<|eos|>"]


def test_a_token_across_the_border_is_scored_for_both(merging):
    """After `one\\n` comes `step` on one side: newline and s are a token of that side's own."""
    row = {"prefix": "one\n", "chosen": "step", "rejected": "two"}
    ends = {"chosen_ends": False, "rejected_ends": False}
    assert scored(merging, **row, **ends) == [f"{PROMPT}one", "\nstep", "\ntwo"]
    row |= {"chosen": "a", "rejected": "b"}
    assert scored(merging, **row, **ends) == [f"{PROMPT}one\n", "a", "b"]


def test_a_template_that_trims_leaves_the_border_to_the_steps(tokenizer_with):
    trimming = tokenizer_with("m['content'] }}", "m['content'] | trim }}")
    row = {"prefix": "one\n", "chosen": "two\n", "rejected": "3"}
    ends = {"chosen_ends": False, "rejected_ends": True}
    assert scored(trimming, **row, **ends) == [f"{PROMPT}one", "\ntwo", "\n3<|eos|>"]


def test_bad_steps_are_found(tokenizer):
    rows = rows_to_train(pairs(("a\nb", "a\nb"), ("a\n\nb", "a\nx")), STEPS)
    found = check_preference_data(rows, tokenizer, 40)
    assert [(row["check"], json.loads(row["examples"])) for row in found.iter_rows(named=True)] == [
        ("chosen_equals_rejected", ["p0"])
    ], "a blank line is a step"
    beyond = rows_to_train(pairs(("a" * 31 + "\nb", "a" * 31 + "\nc")), STEPS)
    assert check_preference_data(beyond, tokenizer, 40)["check"].to_list() == ["prompt_too_long"]


def answers_of(batch, tokenizer):
    scored = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, tokenizer.pad_token_id)
    return [tokenizer.decode(row).replace("<|pad|>", "") for row in scored]


def test_a_training_scores_the_steps_alone(model_folder, tmp_path, monkeypatch):
    from trainer.private_dpo import PrivateDPOTrainer

    batches, compute = [], PrivateDPOTrainer._compute_loss

    def seen(self, model, inputs, return_outputs):
        batches.append(answers_of(inputs, self.processing_class))
        return compute(self, model, inputs, return_outputs)

    monkeypatch.setattr(PrivateDPOTrainer, "_compute_loss", seen)
    folders = model_folder, model_folder, STEPS, tmp_path / "model", tmp_path / "checkpoints"
    result = train_dpo(pairs(("one\ntwo\nend", "one\n2\nend"), ("a", "b\nc")), *folders)
    assert sorted(batches[0]) == sorted(["two\n", "2\n", "a<|eos|>", "b\n"])
    manifest = json.loads((result.model_path / "manifest.json").read_text())
    assert manifest["computation"] == "shared prompts"
    assert result.metrics.filter(metric="loss")["value"][0] == pytest.approx(0.6931, abs=1e-4)
