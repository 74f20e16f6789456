"""Generation with an engine that answers by rule: plan, seeds, ids, and wrong engines."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.content_ids import content_hash
from stages.errors import ConfigError, DataError
from stages.generation import (
    Answer,
    Request,
    SampledCompletion,
    candidates_of,
    count_parts,
    generator_hash,
    gold_candidates,
    plan_parts,
    prompt_seed,
    requests_of,
)
from stages.generation_settings import (
    GenerationConfig,
    OpenAIGenerator,
    TransformersGenerator,
    VllmGenerator,
    sampling_of,
)
from stages.tables import CANDIDATES
from tests.stages.rows import prompts, shuffled


class WordEngine:
    """Counts words as tokens and answers with the prompt's first word and the seed."""

    model_name = "words"
    weights_hash = "w1"
    template_fingerprint = "t1"
    context_tokens = 20
    control_tokens = frozenset({"<|end|>"})

    def count_prompt_tokens(self, conversations):
        return [sum(len(turn["content"].split()) for turn in turns) for turns in conversations]

    def answers(self, batches, sampling):
        for batch in batches:
            for request in reversed(batch):
                texts = [self.sample(request, i, sampling) for i in range(request.samples)]
                tokens = len(request.messages[-1]["content"].split())
                yield [Answer(request.prompt_id, texts, tokens, 0.5, 0.3)]

    def sample(self, request, index, sampling):
        words = f"{request.messages[-1]['content'].split()[0]} {request.seed % 1000} {index}"
        return SampledCompletion(
            words, "stop", min(4, sampling.max_completion_tokens), -0.5 - index
        )


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


def asking(*texts):
    """Return one train prompt for each text."""
    return prompts(
        *(
            {"prompt_id": f"prompt_{i}", "messages": [{"role": "user", "content": text}]}
            for i, text in enumerate(texts)
        )
    )


CONFIG = GenerationConfig(
    samples_per_prompt=3, heldout_samples_per_prompt=2, max_completion_tokens=8, prompts_per_part=2
)
POLICY = TransformersGenerator()


def planned(table, engine=None, config=CONFIG, generator=POLICY):
    return plan_parts(table, engine or WordEngine(), sampling_of(generator, config), config)


def generated(table, config=CONFIG, engine=None, generator=POLICY):
    engine, sampling = engine or WordEngine(), sampling_of(generator, config)
    made = []
    for part in planned(table, engine, config, generator):
        answers = engine.answers([requests_of(part, sampling)], sampling)
        by_prompt = {answer.prompt_id: answer for (answer,) in answers}
        made.append(candidates_of(part, by_prompt, engine, sampling, "mine"))
    return pl.concat(made).sort("candidate_id")


def test_a_part_is_of_one_split_and_of_similar_length():
    table = asked_for([5, 1, 4, 2, 3, 6, 1], heldout=(5, 6))
    parts = planned(table)
    found = [list(p.select("split", "prompt_id", "prompt_tokens").iter_rows()) for p in parts]
    assert found == [
        [("train", "prompt_1", 1), ("train", "prompt_3", 2)],
        [("train", "prompt_4", 3), ("train", "prompt_2", 4)],
        [("train", "prompt_0", 5)],
        [("heldout", "prompt_6", 1), ("heldout", "prompt_5", 6)],
    ]
    asked = [requests_of(part, sampling_of(POLICY, CONFIG)) for part in parts]
    assert [{r.samples for r in requests} for requests in asked] == [{3}, {3}, {3}, {2}]


@given(st.lists(st.sampled_from(["train", "heldout", "gold"]), max_size=12), st.integers(1, 5))
def test_parts_can_be_counted_without_an_engine(splits, size):
    config = CONFIG.model_copy(update={"prompts_per_part": size})
    table = prompts(*({"prompt_id": f"prompt_{i}", "split": s} for i, s in enumerate(splits)))
    assert count_parts(table, config) == len(planned(table, config=config))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 99))
def test_the_plan_and_the_candidates_do_not_depend_on_row_order(lengths, seed):
    table = asked_for(lengths, heldout=(0, 3))
    plans = [planned(t) for t in (table, shuffled(table, seed))]
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


def test_an_engine_that_cannot_count_has_its_prompts_planned_by_id():
    class Served(WordEngine):
        context_tokens = None

        def count_prompt_tokens(self, conversations):
            return None

    table = shuffled(asked_for([15, 1, 4]), 1)
    parts = planned(table, Served())
    assert [p["prompt_id"].to_list() for p in parts] == [["prompt_0", "prompt_1"], ["prompt_2"]]
    assert {tokens for p in parts for tokens in p["prompt_tokens"]} == {None}
    # The answer says how many there were.
    counts = generated(table, engine=Served()).unique("prompt_id").sort("prompt_id")
    assert counts["prompt_tokens"].to_list() == [15, 1, 4]


def test_candidates_are_rows_of_the_table_with_n_per_prompt():
    candidates = generated(asked_for([5, 1, 4], heldout=(2,)))
    CANDIDATES.to_arrow(candidates)
    counts = dict(candidates.group_by("prompt_id").len().iter_rows())
    assert counts == {"prompt_0": 3, "prompt_1": 3, "prompt_2": 2}
    row = candidates.filter(prompt_id="prompt_0", sample_index=2).row(0, named=True)
    seed = prompt_seed(0, "prompt_0")
    assert row.pop("candidate_id").startswith("candidate_")
    assert row.pop("cost") == pytest.approx(0.1)  # a third of its request's
    assert row == {
        "prompt_id": "prompt_0",
        "sample_index": 2,
        "seed": seed,
        "completion": f"0 {seed % 1000} 2",
        "finish_reason": "stop",
        "error": None,
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "logprob_sum": -2.5,
        "latency_seconds": 0.5,
        "generator": "mine",
        "generator_hash": generator_hash("w1", sampling_of(POLICY, CONFIG)),
        "model": "words",
        "weights_hash": "w1",
        "template_fingerprint": "t1",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": 8,
        "system_prompt": None,
    }


def test_prompt_seeds_are_63_bits_and_differ_by_seed_and_prompt():
    # The first 8 bytes of sha256("0:prompt_0"), big-endian, halved
    assert prompt_seed(0, "prompt_0") == 0xF6EA5CA7ECA9825
    seeds = [prompt_seed(s, f"prompt_{p}") for s in range(20) for p in range(20)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert prompt_seed(1, "1:a") != prompt_seed(11, ":a")


def test_a_request_holds_the_messages_and_the_prompts_seed():
    (part,) = planned(asked_for([2]))
    assert requests_of(part, sampling_of(POLICY, CONFIG)) == [
        Request("prompt_0", [{"role": "user", "content": "0 0"}], prompt_seed(0, "prompt_0"), 3)
    ]


def test_a_prompt_fits_exactly_or_is_refused_before_anything_is_generated():
    fitting = planned(asked_for([12, 1]))  # 12 + 8 = 20, the context
    assert sum(part.height for part in fitting) == 2
    with pytest.raises(DataError) as caught:
        planned(asked_for([12, 14, 13]))
    message = str(caught.value)
    assert "2 of 3 prompts are too long: the longest has 14 tokens" in message
    assert "at most 12 tokens (context 20 less max_completion_tokens 8)" in message
    assert "prompt_1" in message


def test_a_completion_limit_that_fills_the_context_is_a_mistake_in_the_configuration():
    config = GenerationConfig(max_completion_tokens=20)
    with pytest.raises(ConfigError, match=r"20 leaves no room for a prompt.*context of 20 tokens"):
        planned(asked_for([3]), config=config)


@pytest.mark.parametrize(("given", "found"), [(0, 0), (2, 2), (4, 4)])
def test_an_answer_with_another_number_of_samples_is_refused(given, found):
    (part,) = planned(asked_for([1, 2]))
    sample = SampledCompletion("a", "stop", 1)
    answers = {"prompt_0": Answer("prompt_0", [sample] * 3)}
    answers["prompt_1"] = Answer("prompt_1", [sample] * given)
    with pytest.raises(DataError, match=rf"returned {found} completions. Expected 3") as caught:
        candidates_of(part, answers, WordEngine(), sampling_of(POLICY, CONFIG), "mine")
    assert caught.value.where == "prompt_1"


def test_answers_belong_to_prompts_by_id_in_whatever_order_they_come():
    table = asked_for([1, 1, 1, 1, 1])
    config = CONFIG.model_copy(update={"prompts_per_part": 5})
    for row in generated(table, config).iter_rows(named=True):
        assert row["completion"].split()[0] == row["prompt_id"].removeprefix("prompt_")


def test_a_missing_sample_is_a_row_that_says_why():
    (part,) = planned(asked_for([1]))
    there = SampledCompletion("a", "stop", 1)
    gone = SampledCompletion(None, "error", 0, None, "fewer_choices")
    answers = {"prompt_0": Answer("prompt_0", [there, gone, gone], 7)}
    made = candidates_of(part, answers, WordEngine(), sampling_of(POLICY, CONFIG), "mine")
    CANDIDATES.to_arrow(made)
    columns = ("completion", "finish_reason", "error", "completion_tokens", "prompt_tokens")
    assert made.select(columns).rows() == [
        ("a", "stop", None, 1, 7),
        (None, "error", "fewer_choices", 0, 7),
        (None, "error", "fewer_choices", 0, 7),
    ]
    assert made["candidate_id"].n_unique() == 3
    assert answers["prompt_0"].missing == 2


def test_a_prompt_that_nobody_answered_has_n_missing_completions():
    (part,) = planned(asked_for([1]))
    made = candidates_of(part, {}, WordEngine(), sampling_of(POLICY, CONFIG), "mine")
    CANDIDATES.to_arrow(made)
    assert made["error"].to_list() == ["not_asked"] * 3


def test_equal_completions_of_one_prompt_have_distinct_ids():
    class Same(WordEngine):
        def sample(self, request, index, sampling):
            return SampledCompletion("same", "stop", 1)

    candidates = generated(asked_for([1, 2]), engine=Same())
    assert candidates["candidate_id"].n_unique() == 6
    assert candidates["logprob_sum"].null_count() == 6
    CANDIDATES.to_arrow(candidates)


def test_ids_change_with_whatever_decides_a_completion_and_with_nothing_else():
    def ids(engine=None, generator=POLICY, **changes):
        config = CONFIG.model_copy(update=changes)
        return frozenset(generated(asked_for([3]), config, engine, generator)["candidate_id"])

    other_weights = WordEngine()
    other_weights.weights_hash = "w2"
    changed = [
        ids(),
        ids(other_weights),
        ids(generator=TransformersGenerator(system_prompt="Be brief.")),
        ids(seed=1),
        ids(temperature=0.5),
        ids(top_p=0.5),
        ids(max_completion_tokens=9),
    ]
    assert len(frozenset.union(*changed)) == 21
    renamed = WordEngine()
    renamed.model_name = "other"
    assert ids(renamed) == ids()
    assert ids(prompts_per_part=9, generator=TransformersGenerator(threads=1)) == ids()
    assert ids(generator=TransformersGenerator(temperature=0.5)) == ids(temperature=0.5)
    assert ids(samples_per_prompt=2) < ids()


def test_the_generator_hash_names_weights_and_sampling():
    expected = {
        "weights": "w1",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": 8,
        "system_prompt": None,
    }
    assert generator_hash("w1", sampling_of(POLICY, CONFIG)) == content_hash(expected)


# --- several generators


def test_a_generators_own_values_come_before_the_common_ones():
    own = TransformersGenerator(samples_per_prompt=1, temperature=0.0, system_prompt="Be brief.")
    sampling = sampling_of(own, CONFIG.model_copy(update={"temperature": 0.7, "top_p": 0.9}))
    assert sampling.deciding() == {
        "samples": 1,
        "heldout_samples": 2,
        "temperature": 0.0,
        "top_p": 0.9,
        "max_completion_tokens": 8,
        "system_prompt": "Be brief.",
        "seed": 0,
    }
    assert [sampling.samples_for(split) for split in ("train", "heldout")] == [1, 2]


@pytest.mark.parametrize(
    "generators",
    [
        ({"engine": "transformers"}, {"engine": "vllm"}),
        ({"engine": "transformers", "model": "a"}, {"engine": "openai", "model": "b", "name": "a"}),
    ],
)
def test_two_generators_need_two_names(generators):
    with pytest.raises(ConfigError, match="two generators have the same name"):
        GenerationConfig.checked({"generators": generators})


def test_generators_are_told_apart_by_their_engine():
    engines = [{"engine": "transformers"}, {"engine": "vllm", "model": "a"}]
    config = GenerationConfig.checked(
        {"generators": [*engines, {"engine": "openai", "model": "b"}]}
    )
    kinds = [TransformersGenerator, VllmGenerator, OpenAIGenerator]
    assert [type(generator) for generator in config.generators] == kinds


def test_a_system_prompt_takes_the_place_of_the_conversations_own():
    turns = [{"role": "user", "content": "Hello?"}]
    table = prompts(
        {"prompt_id": "prompt_0", "messages": [{"role": "system", "content": "Be long."}, *turns]},
        {"prompt_id": "prompt_1", "messages": turns},
    )
    briefly = TransformersGenerator(system_prompt="Be very brief.")
    (part,) = planned(table, generator=briefly)
    # "Be very brief." and "Hello?" are four words: what is counted is what will be sent.
    assert part["prompt_tokens"].to_list() == [4, 4]
    expected = [{"role": "system", "content": "Be very brief."}, *turns]
    requests = requests_of(part, sampling_of(briefly, CONFIG))
    assert [request.messages for request in requests] == [expected, expected]
    # The prompt itself stays as it was: its id, and what is exported, are without it.
    assert part["messages"].to_list() == table["messages"].to_list()
    candidates = generated(table, generator=briefly)
    assert set(candidates["system_prompt"]) == {"Be very brief."}


# --- control tokens


def test_a_prompt_with_a_control_tokens_text_is_not_asked_and_its_answers_are_missing():
    table = asking("Say <|end|>", "Say end", "Say <|END|>")
    parts = planned(table)
    found = dict(pl.concat(parts).select("prompt_id", "control_token").iter_rows())
    assert found == {"prompt_0": "<|end|>", "prompt_1": None, "prompt_2": None}
    asked = [r.prompt_id for part in parts for r in requests_of(part, sampling_of(POLICY, CONFIG))]
    assert sorted(asked) == ["prompt_1", "prompt_2"]
    candidates = generated(table)
    CANDIDATES.to_arrow(candidates)
    missing = candidates.filter(prompt_id="prompt_0")
    assert missing["error"].to_list() == ["control_token_in_prompt"] * 3
    assert missing["completion"].to_list() == [None] * 3
    assert candidates.filter(pl.col("completion").is_null()).height == 3


def test_control_tokens_are_refused_before_generation_when_asked_for():
    config = CONFIG.model_copy(update={"control_tokens": "refuse"})
    assert len(planned(asking("Say end"), config=config)) == 1
    with pytest.raises(DataError) as caught:
        planned(asking("Say end", "Say <|end|>", "<|end|> <|end|>"), config=config)
    assert "2 of 3 prompts hold a control token's text, such as '<|end|>'" in str(caught.value)
    assert "prompt_1" in caught.value.where


def test_a_control_token_in_any_turn_or_in_the_system_prompt_is_found():
    earlier = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b <|end|> c"},
        {"role": "user", "content": "d"},
    ]
    table = prompts({"prompt_id": "prompt_0", "messages": earlier})
    assert planned(table)[0]["control_token"].to_list() == ["<|end|>"]
    fake = TransformersGenerator(system_prompt="<|end|>")
    assert planned(asking("a"), generator=fake)[0]["control_token"].to_list() == ["<|end|>"]


# --- gold


def test_gold_prompts_are_never_asked_and_their_answers_stand_beside_the_others():
    answers = json.dumps({"good": "four", "damaged": "fünf"})
    table = pl.concat(
        [
            asked_for([2]),
            prompts({"prompt_id": "prompt_g", "split": "gold", "gold": answers}),
        ]
    )
    assert [part["prompt_id"].to_list() for part in planned(table)] == [["prompt_0"]]
    planted = gold_candidates(table)
    CANDIDATES.to_arrow(planted)
    columns = ("prompt_id", "sample_index", "completion", "weights_hash", "finish_reason")
    assert planted.select(columns).rows() == [
        ("prompt_g", 0, "four", "gold", "stop"),
        ("prompt_g", 1, "fünf", "gold", "stop"),
    ]
    assert planted["candidate_id"].n_unique() == 2
    assert (
        planted.select("cost", "prompt_tokens", "logprob_sum", "error").rows() == [(None,) * 4] * 2
    )
    pl.concat([planted, generated(table)])


def test_without_gold_prompts_nothing_is_planted():
    assert CANDIDATES.to_arrow(gold_candidates(asked_for([2]))).num_rows == 0
