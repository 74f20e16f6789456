"""The stages one after the other, on bundled prompts with an engine that demonstrates answers."""

from __future__ import annotations

import json
import random

import polars as pl
import pytest

from stages.export import preference_rows
from stages.filtering import FilteringConfig, filter_pairs
from stages.generation import GenerationConfig, SampledCompletion, generate, plan_parts
from stages.pairing import PairingConfig, pair
from stages.prompt_sampling import BundledSource, PromptSamplingConfig, sample
from stages.scoring import RulesScorer, aggregate, judge_by_rules
from stages.task_families import demonstrate
from tests.stages.rows import shuffled

GOLD = 5
"""Which of the eight samples is the good demonstration; the others are flawed."""

PROMPTS = sample(PromptSamplingConfig(sources=(BundledSource(train=60, heldout=20),)))
FACTS = {
    row["messages"][-1]["content"]: (row["verifier"], json.loads(row["ground_truth"]))
    for row in PROMPTS.iter_rows(named=True)
}


class Demonstrator:
    """Answers each prompt with one good and otherwise flawed demonstrations."""

    model_name, weights_hash, template_fingerprint, context_tokens = "demo", "w", "t", 256

    def count_prompt_tokens(self, conversations):
        return [len(messages[-1]["content"].split()) for messages in conversations]

    def generate(self, requests, samples, config):
        return [[self.answer(request, i) for i in range(samples)] for request in requests]

    def answer(self, request, index):
        family, facts = FACTS[request.messages[-1]["content"]]
        rng = random.Random(f"{request.seed} {index}")
        text = demonstrate(family, facts, rng, flawed=index != GOLD)
        return SampledCompletion(text, "stop", len(text.split()), None)


def chained(disturb, scale=1.0):
    """Return candidates, pairs, decisions and export rows, each table disturbed on its way."""
    config = GenerationConfig(heldout_samples_per_prompt=8, max_completion_tokens=48)
    parts = [
        generate(part, Demonstrator(), config)
        for part in plan_parts(disturb(PROMPTS), Demonstrator(), config)
    ]
    candidates = disturb(pl.concat(parts))
    judgments = disturb(judge_by_rules(candidates, disturb(PROMPTS), RulesScorer()))
    judgments = judgments.with_columns(pl.col("score") * scale)
    scores = disturb(aggregate(judgments, candidates))
    pairs = pair(disturb(candidates), scores, PairingConfig())
    filtered = filter_pairs(disturb(pairs), disturb(candidates), FilteringConfig())
    kept = disturb(filtered.kept)
    rows = preference_rows(kept, disturb(PROMPTS), disturb(candidates), "train")
    return candidates, pairs, filtered.decisions, rows


@pytest.mark.parametrize("seed", range(5))
def test_shuffling_every_table_between_the_stages_changes_nothing(seed):
    _, *expected = chained(lambda table: table)
    _, *found = chained(lambda table: shuffled(table, seed))
    for table, other in zip(expected, found, strict=True):
        assert table.height
        assert table.equals(other)


def test_the_planted_gold_answer_is_always_chosen_on_its_own_prompt():
    candidates, pairs, _, rows = chained(lambda table: shuffled(table, 7))
    index = dict(candidates.select("candidate_id", "sample_index").iter_rows())
    asked = dict(candidates.select("candidate_id", "prompt_id").iter_rows())
    assert pairs.height > 60
    for row in pairs.iter_rows(named=True):
        good = candidates.filter(prompt_id=row["prompt_id"], sample_index=GOLD)["completion"][0]
        chosen = candidates.filter(candidate_id=row["chosen_candidate_id"])["completion"][0]
        # A flawed demonstration may happen to be the good text; it is then as good.
        assert chosen == good or row["chosen_score"] == 1.0
        assert asked[row["chosen_candidate_id"]] == row["prompt_id"]
        assert asked[row["rejected_candidate_id"]] == row["prompt_id"]
        assert index[row["rejected_candidate_id"]] != GOLD
    assert rows["chosen_score"].min() == 1.0


def test_inverted_scores_invert_every_label():
    _, pairs, _, _ = chained(lambda table: table)
    _, inverted, _, _ = chained(lambda table: table, scale=-1.0)
    labels = set(pairs.select("chosen_candidate_id", "rejected_candidate_id").iter_rows())
    swapped = set(inverted.select("rejected_candidate_id", "chosen_candidate_id").iter_rows())
    assert labels == swapped
