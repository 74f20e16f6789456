import json

import polars as pl
import pytest

from stages.errors import DataError
from trainer.data_checks import CHECKS, check_preference_data, prompt_keys, require_trainable

LIMIT = 40


def user(content):
    return [{"role": "user", "content": content}]


def rows(*pairs):
    """Rows from (prompt, chosen, rejected); a prompt is a text or a list of messages."""
    return pl.DataFrame(
        {
            "pair_id": [f"p{number}" for number in range(len(pairs))],
            "prompt": [user(p) if isinstance(p, str) else p for p, _, _ in pairs],
            "chosen": [chosen for _, chosen, _ in pairs],
            "rejected": [rejected for _, _, rejected in pairs],
        }
    )


def problems(frame, tokenizer, **rest):
    """Check name to severity, count and pair ids."""
    found = check_preference_data(frame, tokenizer, LIMIT, **rest)
    return {
        row["check"]: (row["severity"], row["count"], json.loads(row["examples"]))
        for row in found.iter_rows(named=True)
    }


GOOD = ("2+2?", "4", "5")


def test_good_rows_have_no_problems(tokenizer):
    found = check_preference_data(rows(GOOD, ("3+3?", "6", "7")), tokenizer, LIMIT)
    assert found.is_empty()
    assert found.columns == ["check", "severity", "count", "examples", "advice"]
    require_trainable(found)


def test_chosen_equal_to_rejected(tokenizer):
    found = problems(rows(GOOD, ("1+1?", "2", "2")), tokenizer)
    assert found == {"chosen_equals_rejected": ("must", 1, ["p1"])}


def test_answers_that_a_template_makes_equal(tokenizer, tokenizer_with):
    trimming = tokenizer_with("m['content'] }}", "m['content'] | trim }}")
    pair = rows(("1+1?", "2", "2 "))
    assert problems(pair, trimming) == {"chosen_equals_rejected": ("must", 1, ["p0"])}
    assert problems(pair, tokenizer) == {}


@pytest.mark.parametrize("empty", ["", " \n"])
def test_empty_completion(tokenizer, empty):
    found = problems(rows(GOOD, ("1+1?", "2", empty), ("1+2?", empty, "3")), tokenizer)
    assert found == {"empty_completion": ("must", 2, ["p1", "p2"])}


def test_template_without_eos_concerns_every_pair(tokenizer_with):
    forgetful = tokenizer_with("<|eos|>", "")
    found = problems(rows(GOOD, ("3+3?", "6", "7")), forgetful)
    assert found == {"template_without_eos": ("must", 2, ["p0", "p1"])}


def test_double_bos(tokenizer_with):
    assert problems(rows(GOOD), tokenizer_with("{% for", "<|bos|>{% for")) == {}
    twice = tokenizer_with("{% for", "<|bos|><|bos|>{% for")
    assert problems(rows(GOOD), twice) == {"double_bos": ("must", 1, ["p0"])}


@pytest.mark.parametrize(
    ("prompt_bytes", "answer_bytes", "expected"),
    [
        # <|user|> + prompt + <|assistant|> + answer + <|eos|>: 3 special tokens, one per byte else
        (30, 7, {}),
        (30, 8, {"sequence_too_long": ("must", 1, ["p0"])}),
        (36, 1, {}),
        (37, 1, {"sequence_too_long": ("must", 1, ["p0"])}),
        (38, 1, {"prompt_too_long": ("must", 1, ["p0"])}),
    ],
)
def test_lengths_at_the_limit_of_40_tokens(tokenizer, prompt_bytes, answer_bytes, expected):
    pair = ("a" * prompt_bytes, "b", "c" * answer_bytes)
    assert problems(rows(pair), tokenizer) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "system", "content": "a"}],
    ],
)
def test_prompt_whose_last_turn_is_not_the_users(tokenizer, prompt):
    found = problems(rows((prompt, "x", "y")), tokenizer)
    assert found == {"prompt_not_ending_with_user": ("must", 1, ["p0"])}


def test_message_without_a_text(tokenizer):
    prompt = [{"role": "system", "content": None}, {"role": "user", "content": "1+1?"}]
    found = problems(rows(GOOD, (prompt, "x", "y")), tokenizer)
    assert found == {"missing_content": ("must", 1, ["p1"])}


def test_duplicate_pair_ids(tokenizer):
    frame = rows(GOOD, ("3+3?", "6", "7")).with_columns(pair_id=pl.lit("same"))
    assert problems(frame, tokenizer) == {"duplicate_pair_id": ("must", 2, ["same"])}


def test_the_same_pair_twice(tokenizer):
    found = problems(rows(GOOD, ("3+3?", "6", "7"), GOOD), tokenizer)
    assert found == {"repeated_pair": ("should", 2, ["p0", "p2"])}


def test_contradicting_pairs(tokenizer):
    found = problems(rows(GOOD, ("2+2?", "5", "4"), ("2+3?", "5", "4")), tokenizer)
    assert found == {"contradicting_pairs": ("should", 2, ["p0", "p1"])}


def test_prompts_kept_for_evaluation(tokenizer):
    heldout = frozenset(prompt_keys(pl.Series([user("2+2?"), user("9+9?")])))
    found = problems(rows(GOOD, ("3+3?", "6", "7")), tokenizer, heldout_prompts=heldout)
    assert found == {"prompt_in_heldout": ("must", 1, ["p0"])}


def test_template_that_renders_a_prompt_differently_before_an_answer(tokenizer_with):
    thinking = tokenizer_with("<|assistant|>{% endif", "<|assistant|>t{% endif")
    assert problems(rows(GOOD), thinking) == {"prompt_not_prefix": ("should", 1, ["p0"])}


def test_prompt_keys_tell_conversations_apart():
    conversations = [
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a|4:user:1:b"}],
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "a"}],
    ]
    keys = prompt_keys(pl.Series(conversations))
    assert keys.n_unique() == 4
    assert keys[2] == "4:user:1:a"


def test_examples_are_at_most_five_and_rows_cross_batches(tokenizer, monkeypatch):
    monkeypatch.setattr("trainer.data_checks.TOKENISED_ROWS", 3)
    found = problems(rows(*[(f"{i}?", "x", "x") for i in range(7)]), tokenizer)
    assert found == {"chosen_equals_rejected": ("must", 7, ["p0", "p1", "p2", "p3", "p4"])}


def test_require_trainable_names_every_fatal_problem(tokenizer):
    found = check_preference_data(rows(GOOD, GOOD, ("1?", "2", "2"), ("3?", "", "2")), tokenizer, 9)
    with pytest.raises(DataError) as raised:
        require_trainable(found)
    message = str(raised.value)
    assert "chosen_equals_rejected: 1 pairs, such as p2" in message
    assert "empty_completion: 1 pairs, such as p3" in message
    assert "repeated_pair" not in message
    assert "drop these pairs" in message


def test_only_should_problems_may_be_trained_on(tokenizer):
    require_trainable(check_preference_data(rows(GOOD, GOOD), tokenizer, LIMIT))


def test_missing_columns_nulls_and_no_rows_are_refused(tokenizer):
    frame = rows(GOOD)
    with pytest.raises(DataError, match=r"lack the columns \['rejected'\]"):
        check_preference_data(frame.drop("rejected"), tokenizer, LIMIT)
    with pytest.raises(DataError, match="no preference rows"):
        check_preference_data(frame.head(0), tokenizer, LIMIT)
    nothing = frame.with_columns(chosen=pl.lit(None, pl.String))
    with pytest.raises(DataError, match=r"hold nulls: \{'chosen': 1\}"):
        check_preference_data(nothing, tokenizer, LIMIT)


def test_a_conversation_that_the_template_refuses_is_named(tokenizer_with):
    strict = tokenizer_with("{% for", "{{ raise_exception('system first') }}{% for")
    with pytest.raises(DataError, match=r"refuses a conversation: system first.*from p0 on"):
        check_preference_data(rows(GOOD), strict, LIMIT)


def test_every_check_has_a_severity():
    assert {severity for severity, _ in CHECKS.values()} == {"must", "should"}
