"""Task families: content-disjoint splits, exact verifiers, grades that never raise."""

import random
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.task_families import (
    FAMILIES,
    PARTIAL_CREDIT,
    Split,
    demonstrate,
    explain,
    is_tempting,
    sample_prompts,
    score,
)

SPLITS: tuple[Split, ...] = get_args(Split)
FACTS: dict[str, dict[str, Any]] = {
    "sum": {"numbers": [147, 285]},
    "sort": {"words": ["anchor", "lamp", "zebra"]},
    "words": {"place": "harbor", "thing": "bells", "word_count": 6},
    "support": {"name": "Anna", "item": "lamp", "problem": "was charged twice"},
    "extract": {"name": "Ben", "item": "watch", "quantity": 3, "place": "museum"},
}
RIGHT = {
    "sum": "Ones 12, tens 13, hundreds 4, total 432.",
    "sort": "Sorted: anchor, lamp, zebra.",
    "words": "The old harbor shows some bells.",
    "support": "Dear Anna. We are sorry about your lamp. You will get your refund soon.",
    "extract": "name: Ben; item: watch; quantity: 3; place: museum.",
}
# One failed check each: (family, completion, score by hand, explanation)
WRONG = [
    ("sum", "Ones 12, tens 12, hundreds 4, total 422.", 0.8 * 2 / 3, "total 422, expected 432"),
    ("sum", "I do not know.", 0.0, "no number in the answer"),
    ("sum", "total 4320", 0.0, "total 4320, expected 432"),
    ("sort", "Sorted: anchor, zebra, lamp.", 0.8 / 3, "1 of 3 words in place"),
    ("sort", "Sorted: anchor, lamp.", 0.8 * 2 / 3, "2 words, expected the 3 given"),
    ("sort", "anchor lamp zebra", 0.0, "not a comma-separated list of words"),
    ("words", "The harbor shows some bells.", 0.8 * 0.875, "5 words, expected 6"),
    ("words", "The old harbor shows some boats.", 0.8 * 0.75, "does not mention bells"),
    ("words", "bells harbor bells bells bells bells.", 0.8, "repeats words to fill up"),
    (
        "support",
        "Dear Anna. We are sorry about your lamp. You will get your coupon soon.",
        0.8 * 5 / 6,
        "offers coupon, expected refund",
    ),
    (
        "support",
        "Dear Anna. We are sorry about your lamp. You will get a refund or a coupon soon.",
        0.8 * 5 / 6,
        "offers refund and coupon, expected refund",
    ),
    (
        "extract",
        "name: Ben; item: watch; quantity: many; place: museum.",
        0.8 * 3 / 4,
        "quantity many, expected 3",
    ),
    (
        "extract",
        "name: Ben; item: watch; quantity: 3; place: museum; tip: 9.",
        0.8 * 3 / 4,
        "1 surplus or repeated fields",
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_content_is_in_two_splits_whatever_the_seed(family: str) -> None:
    keys = {
        split: {
            task.content_key
            for seed in range(4)
            for task in sample_prompts(family, split, 600, seed)
        }
        for split in SPLITS
    }
    for first in SPLITS:
        for second in SPLITS:
            if first != second:
                assert not keys[first] & keys[second], (first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_split_is_large_enough_for_an_honest_round(family: str) -> None:
    assert len(sample_prompts(family, "train", 1_000, 0)) == 1_000
    assert len(sample_prompts(family, "heldout", 600, 0)) == 600


@pytest.mark.parametrize("family", FAMILIES)
def test_contents_are_distinct_and_a_smaller_count_is_a_prefix(family: str) -> None:
    tasks = sample_prompts(family, "train", 300, 7)
    assert len({task.content_key for task in tasks}) == 300
    assert sample_prompts(family, "train", 40, 7) == tasks[:40]
    assert sample_prompts(family, "train", 40, 8) != tasks[:40]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_content_key_ignores_wording_and_order(family: str) -> None:
    wordings: dict[str, set[str]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for seed in range(12):
        for task in sample_prompts(family, "heldout", 500, seed):
            wordings.setdefault(task.content_key, set()).add(task.prompt)
            facts.setdefault(task.content_key, []).append(task.ground_truth)
    assert all(all(other == same[0] for other in same) for same in facts.values())
    distinct = {str(sorted(same[0].items())) for same in facts.values()}
    assert len(distinct) == len(facts)
    if family in ("words", "support"):  # small enough spaces for a content to return by chance
        assert max(len(prompts) for prompts in wordings.values()) >= 3


def test_order_free_facts_are_canonical() -> None:
    sums = sample_prompts("sum", "base", 200, 0)
    shown = [[int(number) for number in re.findall("[0-9]+", task.prompt)] for task in sums]
    assert any(numbers != sorted(numbers) for numbers in shown)
    assert all(
        task.ground_truth["numbers"] == sorted(n) for task, n in zip(sums, shown, strict=True)
    )
    for task in sample_prompts("sort", "base", 200, 0):
        words = task.ground_truth["words"]
        assert words == sorted(words)
        assert all(word in task.prompt for word in words)


def test_an_exhausted_split_says_how_many_contents_there_are() -> None:
    with pytest.raises(ValueError, match=r"5000 prompts asked for, but only \d+ distinct contents"):
        sample_prompts("words", "heldout", 5_000, 0)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown task family 'edit'; known: sum, sort"):
        sample_prompts("edit", "base", 1, 0)
    with pytest.raises(ValueError, match=r"unknown split 'test'; known: base, train, heldout"):
        sample_prompts("sum", "test", 1, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown task family"):
        score("edit", {}, "text")


@pytest.mark.parametrize("family", FAMILIES)
def test_right_answers_score_exactly_one(family: str) -> None:
    assert score(family, FACTS[family], RIGHT[family]) == 1.0
    assert score(family, FACTS[family], f"  {RIGHT[family]}\n") == 1.0
    assert explain(family, FACTS[family], RIGHT[family]) == "ok"


@pytest.mark.parametrize(("family", "completion", "expected", "reason"), WRONG)
def test_wrong_answers_get_partial_credit_and_a_reason(
    family: str, completion: str, expected: float, reason: str
) -> None:
    assert score(family, FACTS[family], completion) == pytest.approx(expected)
    assert explain(family, FACTS[family], completion) == reason


@pytest.mark.parametrize("family", FAMILIES)
def test_good_demonstrations_pass_and_flawed_ones_rarely_do(family: str) -> None:
    rng = random.Random(0)
    tasks = sample_prompts(family, "base", 500, 3)
    for task in tasks:
        good = demonstrate(family, task.ground_truth, rng, flawed=False)
        assert score(family, task.ground_truth, good) == 1.0, good
    flawed = [
        score(family, task.ground_truth, demonstrate(family, task.ground_truth, rng, flawed=True))
        for task in tasks
    ]
    assert sum(value == 1.0 for value in flawed) <= 10
    assert sum(flawed) / len(flawed) < 0.75
    assert 0.2 < sum(is_tempting(family, task.ground_truth) for task in tasks) / 500 < 0.7


HOSTILE = [
    "",
    "\x00",
    "9" * 900,
    "total " + "9" * 500_000,
    "a" * 1_000_000,
    "\u0661\u0662\u0663 \u00b2 total \uff14\uff13\uff12",
    "; : ; : ." * 90,
    "name: Ben; " * 80,
    "__import__('os').abort()",
    "\ud800",
    "." * 999,
]


@pytest.mark.parametrize("completion", HOSTILE, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_completions_fail_without_an_error(family: str, completion: str) -> None:
    assert 0.0 <= score(family, FACTS[family], completion) <= PARTIAL_CREDIT
    reason = explain(family, FACTS[family], completion)
    assert reason != "ok"
    assert "\n" not in reason
    assert len(reason) < 120


FRAGMENTS = re.findall(
    r"\S+",
    "name: item: quantity: place: Ben watch 3 museum ; , . Sorted: anchor lamp zebra total 432 "
    "The harbor bells Anna sorry refund coupon fault",
)


@given(
    family=st.sampled_from(FAMILIES),
    completion=st.text() | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(" ".join),
)
def test_the_score_is_in_range_and_one_only_on_success(family: str, completion: str) -> None:
    value = score(family, FACTS[family], completion)
    reason = explain(family, FACTS[family], completion)
    assert value == 1.0 if reason == "ok" else 0.0 <= value <= PARTIAL_CREDIT
    assert "\n" not in reason


@given(
    family=st.sampled_from(FAMILIES),
    split=st.sampled_from(SPLITS),
    count=st.integers(0, 20),
    seed=st.integers(),
)
def test_sampling_is_deterministic(family: str, split: Split, count: int, seed: int) -> None:
    tasks = sample_prompts(family, split, count, seed)
    assert len(tasks) == count
    assert tasks == sample_prompts(family, split, count, seed)
