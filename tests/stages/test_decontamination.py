"""Overlap with evaluation sets: the passage found, GPT-3's choice of N, and short texts."""

import polars as pl
import pytest

from stages.decontamination import EvaluationNgrams, contamination

QUESTION = "A farmer has 17 sheep, and all but 9 of them run away; how many are left?"


def overlap(prompts, *sets):
    return contamination(pl.Series(prompts, dtype=pl.String), sets).rows()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([20] * 30, 13), ([10] * 10 + [30] * 90, 10), ([3] * 10, 8), ([9, 40, 40], 9)],
)
def test_n_is_the_5th_percentile_of_lengths_within_8_and_13(lengths, expected):
    texts = pl.Series([" ".join(f"w{i}" for i in range(length)) for length in lengths])
    assert EvaluationNgrams.of("e", texts).ngram_words == expected


def test_a_shared_passage_is_named_whatever_its_case_and_marks():
    school = EvaluationNgrams.of("school", pl.Series([QUESTION]))
    quoting = "Solve: a farmer has 17 SHEEP and all but 9 of them -- run away. How many remain?"
    other = "A farmer has 17 sheep. He buys 9 more of them. How many sheep are there now in all?"
    assert overlap([other, quoting, QUESTION, "", "?!", None], school) == [
        (None, None),
        ("school", "a farmer has 17 sheep and all but 9 of them run away"),
        ("school", "a farmer has 17 sheep and all but 9 of them run away"),
        (None, None),
        (None, None),
        (None, None),
    ]


def test_a_text_shorter_than_n_matches_only_a_whole_one():
    facts = EvaluationNgrams.of("facts", pl.Series(["What is the capital of France?", "???", None]))
    asked = ["what is the capital of france", "Tell me: what is the capital of France?", "!!!"]
    assert overlap(asked, facts) == [
        ("facts", "what is the capital of france"),
        (None, None),
        (None, None),
    ]


def test_the_first_set_is_named_and_no_set_means_clean(monkeypatch):
    monkeypatch.setattr("stages.word_ngrams.BLOCK_BYTES", 100)
    long = " ".join(f"w{i}" for i in range(500))
    wide = EvaluationNgrams.of("wide", pl.Series([f"{QUESTION} {long}"]))
    narrow = EvaluationNgrams.of("narrow", pl.Series(["All but 9 of them run away: how many?"]))
    assert (wide.ngram_words, narrow.ngram_words) == (13, 9)
    part = "He heard that all but 9 of them run away. How many?"
    prompts = ["clean " * 40, QUESTION, part, "clean " * 40, f"{part} {long}"]
    assert [name for name, _ in overlap(prompts, wide, narrow)] == [
        None,
        "wide",
        "narrow",
        None,
        "wide",
    ]
    assert [name for name, _ in overlap(prompts, narrow, wide)] == [
        None,
        "narrow",
        "narrow",
        None,
        "narrow",
    ]
    empty = EvaluationNgrams.of("empty", pl.Series([], dtype=pl.String))
    assert overlap([QUESTION], empty) == overlap([QUESTION]) == [(None, None)]
