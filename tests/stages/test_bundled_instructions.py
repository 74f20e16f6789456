"""The instruction prompts in `data/`: read as a source, and checked against their good answers."""

from pathlib import Path

import polars as pl
import pytest

from stages.prompt_sampling import PromptSamplingConfig, sample
from stages.scoring import RulesScorer, judge_by_rules
from stages.tables import CANDIDATES

FILE = Path(__file__).parents[2] / "data" / "instructions.jsonl"


SOURCE = {
    "kind": "file",
    "name": "instructions",
    "path": str(FILE),
    "stratum_column": "topic",
    "verifier_column": "verifier",
    "ground_truth_column": "truth",
    "reference_column": "answer",
    "heldout_share": 1.0,
}


def sampled(*sources):
    return sample(PromptSamplingConfig.checked({"sources": sources})).prompts


@pytest.fixture(scope="module")
def prompts():
    return sampled(SOURCE)


def scores(prompts, answers):
    facts = prompts.select("prompt_id", candidate_id="prompt_id", completion=answers)
    candidates = pl.concat([CANDIDATES.empty(), facts], how="diagonal")
    return judge_by_rules(candidates, prompts, RulesScorer())["score"].to_list()


def test_with_a_share_of_one_all_prompts_are_for_evaluation(prompts):
    assert prompts["split"].to_list() == ["heldout"] * 20
    assert prompts["stratum"].unique().to_list() == ["instructions"]


def test_beside_a_source_that_brings_its_own_splits_they_are_for_evaluation_too():
    found = sampled({"kind": "bundled", "train": 10, "heldout": 5}, SOURCE)
    counts = found.group_by("source", "split").len().sort("source", "split").rows()
    assert counts == [
        ("bundled", "heldout", 5),
        ("bundled", "train", 10),
        ("instructions", "heldout", 20),
    ]


def test_every_good_answer_meets_all_instructions_and_a_word_meets_none_wholly(prompts):
    assert scores(prompts, prompts["reference"]) == [1.0] * 20
    assert max(scores(prompts, pl.lit("Yes"))) < 1
