"""The stages one after the other, on bundled prompts with an engine that demonstrates answers."""

from __future__ import annotations

import json
import random

import polars as pl
import pytest

from stages.export import preference_rows
from stages.filter_settings import FilteringConfig
from stages.filtering import filter_pairs
from stages.generation import (
    Answer,
    SampledCompletion,
    candidates_of,
    gold_candidates,
    plan_parts,
    requests_of,
)
from stages.generation_settings import GenerationConfig, TransformersGenerator, sampling_of
from stages.gold import GoldConfig
from stages.pairing import PairingConfig, pair
from stages.prompt_sampling import PromptSamplingConfig, sample
from stages.prompt_sources import BundledSource
from stages.scoring import RulesScorer, ScoringConfig, judge_by_rules, scores
from stages.task_families import demonstrate
from tests.stages.rows import shuffled

BEST = 5
"""Which of the eight samples is the good demonstration; the others are flawed."""

PROMPTS = sample(
    PromptSamplingConfig(sources=(BundledSource(train=60, heldout=20),), gold=GoldConfig(share=0.1))
).prompts
FACTS = {
    row["messages"][-1]["content"]: (row["verifier"], json.loads(row["ground_truth"]))
    for row in PROMPTS.iter_rows(named=True)
}


class Demonstrator:
    """Answers each prompt with one good and otherwise flawed demonstrations."""

    model_name, weights_hash, template_fingerprint, context_tokens = "demo", "w", "t", 256
    control_tokens = frozenset({"<|end|>"})

    def count_prompt_tokens(self, conversations):
        return [len(messages[-1]["content"].split()) for messages in conversations]

    def answers(self, batches, sampling):
        for request in (request for batch in batches for request in batch):
            samples = [self.sample(request, i) for i in range(request.samples)]
            yield [Answer(request.prompt_id, samples)]

    def sample(self, request, index):
        family, facts = FACTS[request.messages[-1]["content"]]
        rng = random.Random(f"{request.seed} {index}")
        text = demonstrate(family, facts, rng, flawed=index != BEST)
        return SampledCompletion(text, "stop", len(text.split()), None)


def generated(prompts):
    """Return every prompt's candidates, and those planted on gold prompts."""
    config = GenerationConfig(heldout_samples_per_prompt=8, max_completion_tokens=48)
    engine, sampling = Demonstrator(), sampling_of(TransformersGenerator(), config)
    made = [gold_candidates(prompts)]
    for part in plan_parts(prompts, engine, sampling, config):
        answers = engine.answers([requests_of(part, sampling)], sampling)
        of_part = {answer.prompt_id: answer for (answer,) in answers}
        made.append(candidates_of(part, of_part, engine, sampling, "demo"))
    return pl.concat(made)


def chained(disturb, scale=1.0):
    """Return candidates, pairs, decisions and export rows, each table disturbed on its way."""
    candidates = disturb(generated(disturb(PROMPTS)))
    judgments = disturb(judge_by_rules(candidates, disturb(PROMPTS), RulesScorer()))
    judgments = judgments.with_columns(pl.col("score") * scale)
    scored = disturb(scores(judgments, candidates, ScoringConfig()))
    pairs = pair(disturb(candidates), scored, PairingConfig())
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
        good = candidates.filter(prompt_id=row["prompt_id"], sample_index=BEST)["completion"][0]
        chosen = candidates.filter(candidate_id=row["chosen_candidate_id"])["completion"][0]
        # A flawed demonstration may happen to be the good text; it is then as good.
        assert chosen == good or row["chosen_score"] == 1.0
        assert asked[row["chosen_candidate_id"]] == row["prompt_id"]
        assert asked[row["rejected_candidate_id"]] == row["prompt_id"]
        assert index[row["rejected_candidate_id"]] != BEST
    assert rows["chosen_score"].min() == 1.0


def test_planted_gold_is_scored_and_never_paired():
    candidates, pairs, _, _ = chained(lambda table: shuffled(table, 7))
    gold = PROMPTS.filter(split="gold")
    assert gold.height == 6  # a tenth of 60
    assert not set(pairs["prompt_id"]) & set(gold["prompt_id"])
    planted = candidates.join(gold.select("prompt_id"), on="prompt_id", how="semi")
    assert planted.height == 12
    judged = judge_by_rules(planted, PROMPTS, RulesScorer())
    of = dict(judged.select("candidate_id", "score").iter_rows())
    by_prompt = {
        (p, i): of[c]
        for p, i, c in planted.select("prompt_id", "sample_index", "candidate_id").iter_rows()
    }
    assert all(by_prompt[p, 0] > by_prompt[p, 1] for p in gold["prompt_id"])


def test_inverted_scores_invert_every_label():
    _, pairs, _, _ = chained(lambda table: table)
    _, inverted, _, _ = chained(lambda table: table, scale=-1.0)
    labels = set(pairs.select("chosen_candidate_id", "rejected_candidate_id").iter_rows())
    swapped = set(inverted.select("rejected_candidate_id", "chosen_candidate_id").iter_rows())
    assert labels == swapped
