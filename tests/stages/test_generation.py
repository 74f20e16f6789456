"""Generation with an engine that answers by rule: plan, seeds, ids, and wrong engines."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.content_ids import content_hash
from stages.errors import ConfigError, DataError
from stages.generation import (
    GenerationConfig,
    Request,
    SampledCompletion,
    generate,
    generator_hash,
    plan_parts,
    prompt_seed,
    samples_for,
)
from stages.tables import CANDIDATES
from tests.stages.rows import prompts, shuffled


class WordEngine:
    """Counts words as tokens and answers with the prompt's first word and the seed."""

    model_name = "words"
    weights_hash = "w1"
    template_fingerprint = "t1"
    context_tokens = 20

    def __init__(self):
        self.asked = []

    def count_prompt_tokens(self, conversations):
        return [len(messages[-1]["content"].split()) for messages in conversations]

    def generate(self, requests, samples, config):
        self.asked.append((list(requests), samples))
        return [[self.answer(r, i, config) for i in range(samples)] for r in requests]

    def answer(self, request, index, config):
        words = f"{request.messages[-1]['content'].split()[0]} {request.seed % 1000} {index}"
        return SampledCompletion(words, "stop", min(4, config.max_completion_tokens), -0.5 - index)


def asked_for(lengths, heldout=()):
    """Return prompts "i i i ..." of these lengths; those listed are held out."""
    return prompts(
        *(
            {
                "prompt_id": f"prompt_{i}",
                "messages": [{"role": "user", "content": " ".join([str(i)] * length)}],
                "split": "heldout" if i in heldout else "train",
            }
            for i, length in enumerate(lengths)
        )
    )


CONFIG = GenerationConfig(
    samples_per_prompt=3, heldout_samples_per_prompt=2, max_completion_tokens=8, prompts_per_part=2
)


def generated(table, config=CONFIG):
    engine = WordEngine()
    parts = plan_parts(table, engine, config)
    return pl.concat([generate(part, engine, config) for part in parts]).sort("candidate_id")


def test_a_part_is_of_one_split_and_of_similar_length():
    parts = plan_parts(asked_for([5, 1, 4, 2, 3, 6, 1], heldout=(5, 6)), WordEngine(), CONFIG)
    planned = [list(p.select("split", "prompt_id", "prompt_tokens").iter_rows()) for p in parts]
    assert planned == [
        [("train", "prompt_1", 1), ("train", "prompt_3", 2)],
        [("train", "prompt_4", 3), ("train", "prompt_2", 4)],
        [("train", "prompt_0", 5)],
        [("heldout", "prompt_6", 1), ("heldout", "prompt_5", 6)],
    ]
    assert [samples_for(part, CONFIG) for part in parts] == [3, 3, 3, 2]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 99))
def test_the_plan_and_the_candidates_do_not_depend_on_row_order(lengths, seed):
    table = asked_for(lengths, heldout=(0, 3))
    plans = [plan_parts(t, WordEngine(), CONFIG) for t in (table, shuffled(table, seed))]
    assert len(plans[0]) == len(plans[1])
    for one, other in zip(*plans, strict=True):
        assert one.equals(other)
    assert generated(shuffled(table, seed)).equals(generated(table))


@pytest.mark.parametrize("prompts_per_part", [1, 3, 100])
def test_a_prompts_candidates_do_not_depend_on_the_batch(prompts_per_part):
    table = asked_for([5, 1, 4, 2], heldout=(3,))
    config = CONFIG.model_copy(update={"prompts_per_part": prompts_per_part})
    together = generated(table)
    assert generated(table, config).equals(together)
    alone = generated(table.filter(pl.col("prompt_id") == "prompt_2"))
    assert alone.equals(together.filter(pl.col("prompt_id") == "prompt_2"))


def test_candidates_are_rows_of_the_table_with_n_per_prompt():
    candidates = generated(asked_for([5, 1, 4], heldout=(2,)))
    CANDIDATES.to_arrow(candidates)
    counts = dict(candidates.group_by("prompt_id").len().iter_rows())
    assert counts == {"prompt_0": 3, "prompt_1": 3, "prompt_2": 2}
    row = candidates.filter(prompt_id="prompt_0", sample_index=2).row(0, named=True)
    seed = prompt_seed(0, "prompt_0")
    expected = {
        "seed": seed,
        "completion": f"0 {seed % 1000} 2",
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "logprob_sum": -2.5,
        "generator": "words",
        "weights_hash": "w1",
        "template_fingerprint": "t1",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": 8,
    }
    assert expected.items() <= row.items()


def test_prompt_seeds_are_63_bits_and_differ_by_seed_and_prompt():
    # The first 8 bytes of sha256("0:prompt_0"), big-endian, halved
    assert prompt_seed(0, "prompt_0") == 0xF6EA5CA7ECA9825
    seeds = [prompt_seed(s, f"prompt_{p}") for s in range(20) for p in range(20)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert prompt_seed(1, "1:a") != prompt_seed(11, ":a")


def test_an_engine_is_asked_with_messages_and_the_prompts_seed():
    engine, table = WordEngine(), asked_for([2])
    (part,) = plan_parts(table, engine, CONFIG)
    generate(part, engine, CONFIG)
    request = Request([{"role": "user", "content": "0 0"}], prompt_seed(0, "prompt_0"))
    assert engine.asked == [([request], 3)]


def test_a_prompt_fits_exactly_or_is_refused_before_anything_is_generated():
    engine = WordEngine()
    fitting = plan_parts(asked_for([12, 1]), engine, CONFIG)  # 12 + 8 = 20, the context
    assert sum(part.height for part in fitting) == 2
    with pytest.raises(DataError) as caught:
        plan_parts(asked_for([12, 14, 13]), engine, CONFIG)
    message = str(caught.value)
    assert "2 of 3 prompts are too long: the longest has 14 tokens" in message
    assert "at most 12 tokens (context 20 less max_completion_tokens 8)" in message
    assert "prompt_1" in message
    assert engine.asked == []


def test_a_completion_limit_that_fills_the_context_is_a_mistake_in_the_configuration():
    config = GenerationConfig(max_completion_tokens=20)
    with pytest.raises(ConfigError, match=r"20 leaves no room for a prompt.*context of 20 tokens"):
        plan_parts(asked_for([3]), WordEngine(), config)


@pytest.mark.parametrize("drop", ["a prompt", "a sample", "everything", "extra sample"])
def test_an_engine_that_returns_other_counts_is_refused(drop):
    class Wrong(WordEngine):
        def generate(self, requests, samples, config):
            right = super().generate(requests, samples, config)
            wrong = {
                "a prompt": right[1:],
                "a sample": [right[0][1:], *right[1:]],
                "everything": [],
                "extra sample": [[*right[0], right[0][0]], *right[1:]],
            }
            return wrong[drop]

    engine = Wrong()
    (part,) = plan_parts(asked_for([1, 2]), engine, CONFIG)
    with pytest.raises(DataError, match="Expected 2 answers with 3 completions each"):
        generate(part, engine, CONFIG)


def test_equal_completions_of_one_prompt_have_distinct_ids():
    class Same(WordEngine):
        def answer(self, request, index, config):
            return SampledCompletion("same", "stop", 1, None)

    engine = Same()
    (part,) = plan_parts(asked_for([1, 2]), engine, CONFIG)
    candidates = generate(part, engine, CONFIG)
    assert candidates["candidate_id"].n_unique() == 6
    assert candidates["logprob_sum"].null_count() == 6
    CANDIDATES.to_arrow(candidates)


def test_ids_change_with_whatever_decides_a_completion_and_with_nothing_else():
    table = asked_for([3])

    def ids(engine=None, **changes):
        engine, config = engine or WordEngine(), CONFIG.model_copy(update=changes)
        (part,) = plan_parts(table, engine, config)
        return frozenset(generate(part, engine, config)["candidate_id"])

    other_weights = WordEngine()
    other_weights.weights_hash = "w2"
    changed = [
        ids(),
        ids(other_weights),
        ids(seed=1),
        ids(temperature=0.5),
        ids(top_p=0.5),
        ids(max_completion_tokens=9),
    ]
    assert len(frozenset.union(*changed)) == 18
    renamed = WordEngine()
    renamed.model_name = "other"
    assert ids(renamed) == ids()
    assert ids(prompts_per_part=9, threads=1) == ids()
    assert ids(samples_per_prompt=2) < ids()


def test_the_generator_hash_names_weights_and_sampling():
    expected = {"weights": "w1", "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 8}
    assert generator_hash("w1", CONFIG) == content_hash(expected)
