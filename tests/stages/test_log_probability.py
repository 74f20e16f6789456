"""Log-probabilities against a log-softmax worked out position by position."""

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from stages.chat_template import render
from stages.content_ids import weights_hash
from stages.generation import Request
from stages.generation_settings import Sampling
from stages.judgment_rows import as_judgments
from stages.log_probability import LogProbability, judge_by_log_probability
from stages.transformers_engine import TransformersEngine
from tests.stages import rows

pytestmark = pytest.mark.usefixtures("on_the_cpu")

BUNDLED = Path(__file__).parents[2] / "data" / "tiny-model"
EOS = 2
TOLERANCE = 1e-5


def answered(prompt, completion):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


CONVERSATIONS = [
    answered("Hi", ""),
    answered("Add 1 and 2.", "3"),
    answered("Add 1 and 2.", "The sum is 3, of course."),
    answered("Sort 3, 1, 2 and say how.", "1, 2, 3: " + "compare and swap; " * 5),
    [*answered("Count.", "1 2 3"), *answered("Go on.", " ".join(map(str, range(30))))],
]


@pytest.fixture(scope="module")
def model(on_the_cpu):
    return LogProbability(BUNDLED, batch_tokens=400)


@pytest.fixture(scope="module")
def expected(model):
    return [mean_logprob(model.loaded.tokenizer, c) for c in CONVERSATIONS]


def mean_logprob(tokenizer, conversation):
    reference = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    (prompt,) = render(tokenizer, [conversation[:-1]])
    (ids,) = render(tokenizer, [conversation], add_generation_prompt=False)
    assert ids[: len(prompt)] == prompt
    assert ids[-1] == EOS
    with torch.inference_mode():
        logits = reference(torch.tensor([ids])).logits[0].double()
    places = range(len(prompt), len(ids))
    logprobs = [(logits[p - 1][ids[p]] - logits[p - 1].logsumexp(-1)).item() for p in places]
    return sum(logprobs) / len(logprobs)


def test_it_is_the_mean_log_softmax_of_the_answer_and_its_end_of_turn(model, expected):
    outcomes = model.score(CONVERSATIONS)
    assert [outcome.score for outcome in outcomes] == pytest.approx(expected, abs=TOLERANCE)
    assert max(expected) < 0
    assert max(expected) - min(expected) > 1
    (long,) = model.score([answered("Hi", "1" * 300)])
    assert long.score is None
    assert long.error.startswith("too_long")


@settings(max_examples=15)
@given(
    places=st.lists(st.integers(0, len(CONVERSATIONS) - 1), max_size=8),
    batch_tokens=st.integers(1, 2000),
)
def test_it_does_not_depend_on_what_shares_the_batch(model, expected, places, batch_tokens):
    model.batch_tokens = batch_tokens
    found = [outcome.score for outcome in model.score([CONVERSATIONS[i] for i in places])]
    assert found == pytest.approx([expected[i] for i in places], abs=TOLERANCE)


def test_what_the_model_sampled_itself_brings_the_same_number_along(model):
    """The sampling's own sum over its own tokens, against the text scored anew."""
    prompt = [{"role": "user", "content": "What is 12 + 34?"}]
    engine = TransformersEngine(BUNDLED)
    asked = Request("p", prompt, 7, 8)
    ((answer,),) = engine.answers([[asked]], Sampling(8, 1, 0.7, 0.9, 48, None, 7))
    whole = [s for s in answer.samples if s.finish_reason == "stop"]
    assert len(whole) >= 4
    texts = [[*prompt, {"role": "assistant", "content": s.text}] for s in whole]
    brought = [s.logprob_sum / s.tokens for s in whole]
    assert brought == pytest.approx([o.score for o in model.score(texts)], abs=1e-4)


def test_only_what_it_did_not_sample_to_the_end_from_the_prompt_alone_is_computed():
    own = {"weights_hash": "w", "logprob_sum": -6.0, "completion_tokens": 4, "model": "tiny"}
    candidates = rows.candidates(
        {"candidate_id": "own", **own},
        {"candidate_id": "other", **own, "weights_hash": "v"},
        {"candidate_id": "cut", **own, "finish_reason": "length"},
        {"candidate_id": "told", **own, "system_prompt": "Be brief."},
        {"candidate_id": "unknown", **own, "logprob_sum": None},
    )
    computed = []

    def compute(others):
        computed.extend(others["candidate_id"])
        ids = others.select("candidate_id", score=pl.lit(-9.0), raw=pl.lit("-9.0"))
        return as_judgments(ids.with_columns(scorer=pl.lit("ref"), scorer_version=pl.lit("w")))

    judged = judge_by_log_probability(candidates, "w", "ref", compute)
    assert computed == ["other", "cut", "told", "unknown"]
    assert dict(judged.select("candidate_id", "score").iter_rows()) == {
        "own": -1.5,
        **dict.fromkeys(computed, -9.0),
    }
    (row,) = judged.filter(candidate_id="own").select("scorer", "scorer_version", "raw").rows()
    assert row == ("ref", "w", "-1.5, as sampled")
    alone = judge_by_log_probability(candidates.head(1), "w", "ref", lambda _: 1 / 0)
    assert alone.equals(judged.head(1))


def test_what_names_the_model(model):
    assert (model.model_name, model.weights_hash) == ("tiny-model", weights_hash(BUNDLED))
