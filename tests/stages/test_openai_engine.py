"""The engine over HTTP: exactly N samples for every prompt, each on its own, whatever happens."""

import itertools
import random
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stages.budget import Budget, Prices
from stages.endpoint_settings import EndpointConfig
from stages.endpoints import EndpointPool
from stages.errors import BudgetError, EndpointError
from stages.generation import Request, SampledCompletion
from stages.generation_settings import Sampling
from stages.openai_engine import KnownModel, OpenAIEngine, OpenAISettings, read_choices
from tests.stages.test_transformers_engine import BUNDLED
from tests.stub_server import FAULTS, Stub, answer_to

SAMPLING = Sampling(8, 4, 0.7, 0.9, 32, None, 0)
FAULTY = {  # 20 % in all
    "http_429": 0.03,
    "http_500": 0.03,
    "hang": 0.004,
    "drop": 0.03,
    "interrupted": 0.016,
    "truncated": 0.03,
    "fewer": 0.02,
    "null": 0.02,
    "empty": 0.02,
}


def request(i, samples=8):
    return Request(f"prompt_{i}", [{"role": "user", "content": f"question {i}"}], 1000 + i, samples)


def answered(stub, requests, settings=None, sampling=SAMPLING, known=None, **endpoint):
    """Return the answers by prompt id."""
    config = EndpointConfig(base_urls=[stub.url], **{"timeout_seconds": 20.0, **endpoint})
    with EndpointPool(config, Budget(), backoff_seconds=0.001) as pool:
        engine = OpenAIEngine(
            pool, "stub-model", known or KnownModel("m", "w"), settings or OpenAISettings()
        )
        answers = [one for (one,) in engine.answers([requests[:3], requests[3:]], sampling)]
    by_prompt = {answer.prompt_id: answer for answer in answers}
    assert len(by_prompt) == len(answers) == len(requests)
    for one in requests:
        assert len(by_prompt[one.prompt_id].samples) == one.samples
    return by_prompt


def texts(answer):
    return [sample.text for sample in answer.samples]


def body_of(one, choices, seed, **more):
    return {"messages": one.messages, "n": choices, "seed": seed, **more}


def test_one_request_holds_all_samples_and_how_they_are_sampled():
    bodies = []

    def respond(body):
        bodies.append(body)
        return "good"

    with Stub(respond=respond) as stub:
        answers = answered(stub, [request(1)])
    assert stub.served == 1
    assert bodies[0] == {
        "model": "stub-model",
        "messages": [{"role": "user", "content": "question 1"}],
        "n": 8,
        "seed": 1001,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 32,
    }
    # 8 x 1 word; the prompt has 2.
    assert answers["prompt_1"].samples == [SampledCompletion("good", "stop", 1)] * 8
    assert answers["prompt_1"].prompt_tokens == 2
    assert answers["prompt_1"].cost is None
    assert answers["prompt_1"].missing == 0


def test_samples_are_those_of_the_prompt_and_its_seed():
    with Stub() as stub:
        answers = answered(stub, [request(i) for i in range(50)])
    for i in range(50):
        body = body_of(request(i), 8, 1000 + i)
        assert texts(answers[f"prompt_{i}"]) == [answer_to(body, k) for k in range(8)]
    assert stub.served == 50


def test_what_is_asked_of_a_prompt_does_not_depend_on_the_others():
    with Stub(faults={"fewer": 0.3, "null": 0.2}) as stub:
        many = answered(stub, [request(i) for i in range(30)])
    with Stub(faults={"fewer": 0.3, "null": 0.2}) as stub:
        some = answered(stub, [request(i) for i in range(29, 0, -3)])
    assert {prompt_id: texts(answer) for prompt_id, answer in some.items()} == {
        prompt_id: texts(many[prompt_id]) for prompt_id in some
    }


def test_more_samples_than_a_request_may_hold_are_asked_for_in_several_with_other_seeds():
    with Stub(maximum_choices=3) as stub:
        settings = OpenAISettings(maximum_choices_per_request=3)
        answers = answered(stub, [request(1)], settings)
    assert stub.served == 3  # 3 + 3 + 2
    assert len(set(texts(answers["prompt_1"]))) == 8


def test_an_endpoint_that_ignores_n_is_asked_until_all_are_there():
    with Stub(faults={"fewer": 1.0}) as stub:
        answers = answered(stub, [request(1, samples=2), request(2, samples=1)], attempts=2)
    # n=2 gives one, then n=1 gives none, twice: given up.
    assert texts(answers["prompt_1"])[1:] == [None]
    assert answers["prompt_1"].samples[0].text.startswith("[question 1]")
    assert answers["prompt_1"].samples[1] == SampledCompletion(
        None, "error", 0, error="fewer_choices"
    )
    assert answers["prompt_1"].missing == 1
    assert texts(answers["prompt_2"]) == [None]
    assert stub.served == 3 + 2


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        ("null", SampledCompletion(None, "error", 0, error="null_choice")),
        ("empty", SampledCompletion("", "stop", 0, error="empty_completion")),
    ],
)
def test_what_stays_faulty_is_recorded_as_what_it_is(fault, last):
    with Stub(faults={fault: 1.0}) as stub:
        answers = answered(stub, [request(1, samples=3)], attempts=2)
    # 3 choices of which one is faulty, 1 faulty, 1 faulty.
    assert [bool(text) for text in texts(answers["prompt_1"])] == [True, True, False]
    assert answers["prompt_1"].samples[2] == last
    assert stub.served == 3
    seeds = {body.split('"seed":')[1].split(",")[0] for body in stub.asked}
    assert len(seeds) == 3


def test_a_request_that_fails_is_missing_with_its_reason_and_the_others_go_on():
    def respond(body):
        return "x" * 5

    with Stub(respond=respond, maximum_choices=4) as stub:
        answers = answered(stub, [request(i, samples=4 + (i == 9)) for i in range(10)])
    assert {answer.missing for key, answer in answers.items() if key != "prompt_9"} == {0}
    missing = SampledCompletion(None, "error", 0, error="rejected: n must be at most 4")
    assert answers["prompt_9"].samples == [missing] * 5
    assert answers["prompt_9"].latency_seconds is None


def test_two_thousand_prompts_with_a_fifth_of_faults_end_as_exactly_one_record_each():
    requests = [request(i) for i in range(2000)]
    random.Random(0).shuffle(requests)
    # Two attempts, so that some are given up.
    with Stub(faults=FAULTY, latency_seconds=0.001) as stub:
        answers = answered(stub, requests, attempts=2, timeout_seconds=3)
    counts = Counter()
    for one in requests:
        for sample in answers[one.prompt_id].samples:
            if sample.text:
                assert sample.text.startswith(f"[{one.messages[0]['content']}] ")
                assert sample.error is None
                counts["present"] += 1
            else:
                assert (sample.text is None) == (sample.finish_reason == "error")
                counts[sample.error] += 1
    assert sum(counts.values()) == 2000 * 8
    assert 0.95 * 16_000 < counts["present"] < 16_000
    assert set(counts) <= {
        "present",
        "timeout",
        "http_500",
        "dropped_connection",
        "broken_json",
        "fewer_choices",
        "null_choice",
        "empty_completion",
    }
    # Whatever was answered in full was not asked for again.
    assert set(stub.answered.values()) == {1}


def test_answers_that_were_there_before_the_server_went_are_kept():
    requests = [request(i) for i in range(400)]
    with Stub(latency_seconds=0.002) as stub:
        config = EndpointConfig(
            base_urls=[stub.url], maximum_in_flight=8, give_up_after_seconds=0.2
        )
        with EndpointPool(config, backoff_seconds=0.001) as pool:
            engine = OpenAIEngine(pool, "stub-model", KnownModel("m", "w"), OpenAISettings())

            def batches():
                yield requests[:100]
                stub.stop()
                yield requests[100:]

            answers = []
            with pytest.raises(EndpointError, match="no server could be used"):
                answers.extend(one for (one,) in engine.answers(batches(), SAMPLING))
    assert len(answers) >= 85
    assert not any(answer.missing for answer in answers)


def test_samples_that_are_there_come_before_what_stops_the_run():
    """One choice a request; the server is gone after 40, or the budget is spent."""
    asked, settings = itertools.count(1), OpenAISettings(maximum_choices_per_request=1)

    def respond(body):
        if next(asked) == 40:
            threading.Thread(target=stub.stop).start()
        return f"{body['seed']}"

    with Stub(respond=respond, latency_seconds=0.002) as stub:
        config = EndpointConfig(
            base_urls=[stub.url], maximum_in_flight=16, give_up_after_seconds=0.2
        )
        with EndpointPool(config, backoff_seconds=0.001) as pool:
            engine = OpenAIEngine(pool, "stub-model", KnownModel("m", "w"), settings)
            answers = []
            with pytest.raises(EndpointError, match="no server could be used"):
                answers.extend(a for (a,) in engine.answers([map(request, range(9))], SAMPLING))
    there = sum(len(answer.samples) - answer.missing for answer in answers)
    assert 30 <= there <= stub.answered.total()

    budget = Budget(maximum_tokens=50)
    with Stub() as stub:
        config = EndpointConfig(base_urls=[stub.url])
        with EndpointPool(config, budget, backoff_seconds=0.001) as pool:
            engine = OpenAIEngine(pool, "stub-model", KnownModel("m", "w"), settings)
            with pytest.raises(BudgetError):
                answers = [a for (a,) in engine.answers([[request(0, samples=64)]], SAMPLING)]
    assert stub.served < 20


def test_prices_make_the_cost_of_an_answer_with_all_that_was_asked_for_it():
    prices = Prices(prompt_per_million_tokens=1e6, completion_per_million_tokens=1e5)
    with Stub(faults={"null": 1.0}) as stub:
        settings = OpenAISettings(prices)
        answers = answered(stub, [request(1, samples=2)], settings, attempts=1)
    # n=2: 2 prompt tokens, 3 of the one choice that isn't null; n=1: 2 and none.
    assert answers["prompt_1"].cost == pytest.approx(2 + 0.3 + 2)


def test_with_a_tokenizer_prompts_are_counted_and_control_tokens_are_known():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    turns = [{"role": "user", "content": "Sort b, a."}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    pool = EndpointPool(EndpointConfig(base_urls=["http://127.0.0.1:9/v1"]))
    engine = OpenAIEngine(pool, "m", KnownModel("m", "w", "f", 99, tokenizer), OpenAISettings())
    assert engine.count_prompt_tokens([turns, turns]) == [len(ids)] * 2
    assert tokenizer.eos_token in engine.control_tokens
    assert (engine.template_fingerprint, engine.context_tokens) == ("f", 99)
    plain = OpenAIEngine(pool, "m", KnownModel("m", "w"), OpenAISettings())
    assert plain.count_prompt_tokens([turns]) is None
    assert plain.control_tokens == frozenset()


def choice(text="hello", finish_reason="stop", **more):
    return {"message": {"content": text}, "finish_reason": finish_reason, **more}


def test_log_probabilities_give_tokens_and_their_sum():
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": -0.25}, {"logprob": -1}]}
    body = {"choices": [choice(logprobs=logprobs)]}
    assert read_choices(body, 1) == [SampledCompletion("hello", "stop", 3, -1.75)]


def test_without_them_tokens_are_shared_out_by_length():
    body = {
        "choices": [choice("abcdef"), choice("ab", "length")],
        "usage": {"completion_tokens": 12},
    }
    assert [(s.tokens, s.finish_reason) for s in read_choices(body, 2)] == [
        (9, "stop"),
        (3, "length"),
    ]


@pytest.mark.parametrize(
    ("found", "sample"),
    [
        (choice(finish_reason="eos_token"), SampledCompletion("hello", "stop", 0)),
        (
            choice(finish_reason="content_filter"),
            SampledCompletion(None, "error", 0, error="ended_by_content_filter"),
        ),
        (choice(finish_reason=None), SampledCompletion(None, "error", 0, error="ended_by_None")),
        (
            choice(finish_reason="x" * 1000),
            SampledCompletion(None, "error", 0, error="ended_by_" + "x" * 40),
        ),
        (choice(None), SampledCompletion(None, "error", 0, error="null_choice")),
        (choice(["hello"]), SampledCompletion(None, "error", 0, error="null_choice")),
        (
            {"finish_reason": "stop", "message": None},
            SampledCompletion(None, "error", 0, error="null_choice"),
        ),
        (
            choice("", logprobs={"content": [{"logprob": -2}]}),
            SampledCompletion("", "stop", 1, -2.0, "empty_completion"),
        ),
    ],
)
def test_a_choice_is_whole_or_it_is_missing(found, sample):
    assert read_choices({"choices": [found]}, 1) == [sample]


def test_more_choices_than_asked_are_cut():
    assert len(read_choices({"choices": [choice()] * 5}, 2)) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "finish_reason", "logprobs", "logprob", "usage"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["choices", "usage"]), JSON), st.integers(1, 3))
def test_any_json_is_read_without_an_error(body, wanted):
    samples = read_choices(body, wanted)
    assert len(samples) <= wanted
    for sample in samples:
        assert sample.tokens >= 0
        assert (sample.text is None) == (sample.finish_reason == "error")
        assert bool(sample.text) == (sample.error is None)


def test_the_faults_of_the_large_test_are_known_and_a_fifth():
    assert set(FAULTY) < set(FAULTS)
    assert sum(FAULTY.values()) == pytest.approx(0.2)
