"""Judges: every candidate once with a verdict or a reason; order and chance decide no label."""

import asyncio
import json
import random
import re
from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.aggregation import aggregate
from stages.budget import Budget, Prices
from stages.endpoint_settings import EndpointConfig
from stages.endpoints import EndpointPool, Reply, RequestFailedError
from stages.errors import BudgetError, ConfigError, ModelError
from stages.injections import INJECTIONS, GoldPair, injection_flip_rate, planted
from stages.judge_prompts import load_rubric
from stages.judges import (
    JUDGE_VERSION,
    Judge,
    JudgeScorer,
    judge_candidates,
    plan_questions,
    questions_per_prompt,
)
from stages.scorer_health import HealthConfig
from stages.tables import JUDGMENTS
from tests.stages.rows import candidates, prompts, shuffled
from tests.stub_server import Stub

PAIRWISE = load_rubric("pairwise")
POINTWISE = load_rubric("helpfulness")
PRICES = Prices(prompt_per_million_tokens=1.0, completion_per_million_tokens=10.0)

BLOCK = re.compile(
    r"^----- BEGIN RESPONSE((?: [AB])?) (\w+) -----\n(.*?)\n----- END RESPONSE\1 \2 -----$",
    re.MULTILINE | re.DOTALL,
)

PROMPTS = prompts({"prompt_id": "p1"}, {"prompt_id": "p2"}, {"prompt_id": "unanswered"})
# A response's worth to the stub judges is how often it says "good".
CANDIDATES = candidates(
    {"prompt_id": "p1", "candidate_id": "best", "completion": "good good good"},
    {"prompt_id": "p1", "candidate_id": "fair", "completion": "good"},
    {"prompt_id": "p1", "candidate_id": "also_fair", "completion": "rather good"},
    {"prompt_id": "p1", "candidate_id": "empty", "completion": ""},
    {"prompt_id": "p1", "candidate_id": "failed", "completion": None, "finish_reason": "error"},
    {"prompt_id": "p2", "candidate_id": "alone", "completion": "good"},
)


class MemoryOfTests(dict):
    def put(self, entries):
        self.update(json.loads(json.dumps(entries)))


class FakePool:
    """Answers by a function of the request's body; finishes in a random order."""

    def __init__(self, respond, seed=0):
        self.respond, self.bodies, self.seed = respond, [], seed

    async def post(self, path, body):
        assert path == "/chat/completions"
        await asyncio.sleep(0)
        self.bodies.append(body)
        text = self.respond(body)
        if isinstance(text, Exception):
            raise text
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return Reply({"choices": [choice], "usage": usage}, 0.5, "fake")

    def map(self, work, items):
        async def gathered():
            return await asyncio.gather(*(work(item) for item in items))

        results = asyncio.run(gathered())
        random.Random(self.seed).shuffle(results)
        yield from results


def shown(body):
    """Return the responses that a request shows, as they are shown."""
    return [text for _, _, text in BLOCK.findall(body["messages"][-1]["content"])]


def worth(text):
    return text.count("good")


def fair_judge(body):
    """Answer as a well-behaved judge does, pointwise or pairwise."""
    values = [worth(text) for text in shown(body)]
    if len(values) == 1:
        value = min(5, 1 + values[0])
        return json.dumps({"reasoning": "", "scores": dict.fromkeys(NAMES, value)})
    winner = "A" if values[0] > values[1] else "B" if values[0] < values[1] else "tie"
    return json.dumps({"reasoning": "because", "winner": winner})


NAMES = [criterion.name for criterion in POINTWISE.criteria]


def inverted_judge(body):
    swapped = {"A": "B", "B": "A", "tie": "tie"}
    verdict = json.loads(fair_judge(body))
    return json.dumps(verdict | {"winner": swapped[verdict["winner"]]})


def first_wins(_body):
    return "I compared both. [[A]]"


def judge_of(respond, rubric=PAIRWISE, **settings):
    pool = respond if hasattr(respond, "map") else FakePool(respond)
    name = "pairwise" if rubric.mode == "pairwise" else "helpfulness"
    scorer = JudgeScorer(name="judge", model="m", rubric=name, **settings)
    return Judge(scorer, rubric, pool)


def judged(respond, rubric=PAIRWISE, answers=CANDIDATES, memory=None, **settings):
    memory = MemoryOfTests() if memory is None else memory
    table = judge_candidates(answers, PROMPTS, judge_of(respond, rubric, **settings), memory)
    JUDGMENTS.to_arrow(table)
    assert table["judgment_id"].is_unique().all()
    return table


def win_rates(table):
    return dict(aggregate(table, CANDIDATES).select("candidate_id", "score").iter_rows())


def rows_of(table, **where):
    return list(table.filter(**where).iter_rows(named=True))


def test_pointwise_scores_stand_on_the_rubrics_scale():
    pool = FakePool(fair_judge)
    table = judged(pool, POINTWISE, prices=PRICES)
    scores = dict(table.select("candidate_id", "score").iter_rows())
    assert scores == {
        "best": pytest.approx(4),
        "fair": pytest.approx(2),
        "also_fair": pytest.approx(2),
        "empty": pytest.approx(1),
        "alone": pytest.approx(2),
        "failed": None,
    }
    assert len(pool.bodies) == 5
    (row,) = rows_of(table, candidate_id="best")
    # 100 tokens at 1 and 10 at 10 for a million
    assert (row["prompt_tokens"], row["completion_tokens"]) == (100, 10)
    assert row["cost"] == pytest.approx(200e-6)
    assert row["latency_seconds"] == 0.5
    assert row["raw"] == fair_judge(pool.bodies[0]).replace("2", "4")
    assert (row["scorer_version"], row["scorer_model"]) == (JUDGE_VERSION, "m")
    assert row["scorer_prompt_hash"] == judge_of(fair_judge, POINTWISE).prompt_hash


def test_criteria_are_weighted():
    # Weights 3, 3, 2, 1: (3*5 + 3*4 + 2*1 + 1*3) / 9 = 32 / 9
    answer = json.dumps({"reasoning": "", "scores": dict(zip(NAMES, (5, 4, 1, 3), strict=True))})
    table = judged(lambda _: answer, POINTWISE)
    assert rows_of(table, candidate_id="fair")[0]["score"] == pytest.approx(32 / 9)


def test_no_completion_is_not_asked_about_and_an_empty_one_is():
    pool = FakePool(fair_judge)
    table = judged(pool)
    assert all("" in shown(b) or all(map(worth, shown(b))) for b in pool.bodies)
    assert any("" in shown(b) for b in pool.bodies)
    (failed,) = rows_of(table, candidate_id="failed")
    assert (failed["score"], failed["error"], failed["cost"]) == (None, "no_completion", None)
    assert failed["other_candidate_id"] is None
    (alone,) = rows_of(table, candidate_id="alone")
    assert (alone["score"], alone["error"]) == (None, "no_opponent")


def test_pairwise_asks_each_two_in_both_orders_and_counts_for_both():
    pool = FakePool(fair_judge)
    table = judged(pool)
    # 4 answered candidates of p1: 6 pairs, 2 orders
    asked = Counter(tuple(shown(body)) for body in pool.bodies)
    assert len(asked) == 12
    assert set(asked.values()) == {1}
    pairs = table.drop_nulls("other_candidate_id")
    orders = pairs.group_by("candidate_id", "other_candidate_id").agg("order").height
    assert (pairs.height, orders) == (12, 6)
    assert pairs["flag"].null_count() == 12
    # best beats 3; the two fair ones tie, lose to best, beat empty: (0 + 0.5 + 1) / 3
    assert win_rates(table) == {
        "best": 1.0,
        "fair": 0.5,
        "also_fair": 0.5,
        "empty": 0.0,
        "alone": None,
        "failed": None,
    }


def test_the_row_says_who_was_shown_first():
    pool = FakePool(fair_judge)
    texts = dict(CANDIDATES.select("candidate_id", "completion").iter_rows())
    for row in judged(pool).drop_nulls("order").iter_rows(named=True):
        lead, other = texts[row["candidate_id"]], texts[row["other_candidate_id"]]
        winner = json.loads(row["raw"])["winner"]
        at_first = lead if row["order"] == "first" else other
        if worth(lead) != worth(other):
            expected = "A" if worth(at_first) == max(worth(lead), worth(other)) else "B"
            assert winner == expected
            assert row["score"] == float(worth(lead) > worth(other))


def test_orders_that_disagree_are_a_tie_with_its_flag_and_every_word_kept():
    table = judged(first_wins).drop_nulls("order")
    assert set(table["score"]) == {0.5}
    assert set(table["flag"]) == {"order_disagreement"}
    assert set(table["raw"]) == {"I compared both. [[A]]"}
    assert table["error"].null_count() == table.height


def test_a_win_in_one_order_and_a_tie_in_the_other_disagree_too():
    def only_convinced_by_best_when_first(body):
        return "[[A]]" if worth(shown(body)[0]) == 3 else "[[C]]"

    table = judged(only_convinced_by_best_when_first).drop_nulls("order")
    flagged = table.drop_nulls("flag")
    assert flagged.height == 6  # the three pairs with best
    ids = flagged.select("candidate_id", "other_candidate_id").rows()
    assert all("best" in pair for pair in ids)
    assert set(table["score"]) == {0.5}


@pytest.mark.parametrize("broken", ["no idea", RequestFailedError("timeout")])
def test_one_order_alone_is_no_verdict(broken):
    def fails_when_best_is_second(body):
        return broken if worth(shown(body)[1]) == 3 else fair_judge(body)

    table = judged(fails_when_best_is_second)
    missing = table.filter(pl.col("score").is_null() & pl.col("order").is_not_null())
    reason = "unparsed" if isinstance(broken, str) else "timeout"
    assert Counter(missing["error"]) == {reason: 3, "other_order_missing": 3}
    assert all('"winner"' in row["raw"] for row in rows_of(table, error="other_order_missing"))
    assert win_rates(table)["best"] is None
    assert win_rates(table)["empty"] == 0.0


def test_one_order_only_when_told_so():
    pool = FakePool(first_wins)
    table = judged(pool, both_orders=False)
    assert len(pool.bodies) == 6
    assert set(table.drop_nulls("order")["order"]) == {"first"}
    assert set(table.drop_nulls("order")["score"]) == {1.0}
    leads = table.drop_nulls("order").filter(pl.col("candidate_id") < pl.col("other_candidate_id"))
    assert 0 < leads.height < 6  # neither always the smaller id nor always the larger one


def test_an_unreadable_answer_is_asked_for_once_more_and_then_missing():
    pool = FakePool(lambda _: "Antwort B gefällt mir besser.")
    memory = MemoryOfTests()
    table = judged(pool, POINTWISE, memory=memory, prices=PRICES)
    assert Counter(shown(b)[0] for b in pool.bodies) == {
        "good good good": 2,
        "good": 4,
        "rather good": 2,
        "": 2,
    }
    assert len({body["seed"] for body in pool.bodies}) == 10
    asked = table.filter(pl.col("error") != "no_completion")
    assert set(asked["error"]) == {"unparsed"}
    assert asked["score"].null_count() == 5
    assert set(asked["raw"]) == {"Antwort B gefällt mir besser."}
    assert set(asked["prompt_tokens"]) == {200}  # both attempts
    # It was paid for and stays missing: resuming doesn't ask a third time.
    again = FakePool(fair_judge)
    assert judged(again, POINTWISE, memory=memory, prices=PRICES).equals(table)
    assert not again.bodies


MANY = candidates(
    *(
        {"prompt_id": "p1", "candidate_id": f"c{i:03}", "completion": f"good {i}"}
        for i in range(500)
    )
)


def test_a_judge_whose_first_answers_say_nothing_stops_the_run():
    memory = MemoryOfTests()
    with Stub(respond=lambda _: "Gut!\x1b[31m") as stub:
        config = EndpointConfig(base_urls=(stub.url,), maximum_in_flight=8)
        scorer = JudgeScorer(name="j", model=stub.model, rubric="helpfulness")
        with EndpointPool(config) as pool, pytest.raises(ModelError) as stopped:
            judge_candidates(MANY, PROMPTS, Judge(scorer, POINTWISE, pool), memory)
        assert stub.served <= 2 * (20 + 8)
        assert len(memory) == stub.served / 2, "what was paid for is kept"
    said = str(stopped.value)
    assert said.startswith(
        "none of the first 20 answers of 'stub-model' could be read as a verdict"
    )
    assert "\x1b" not in said
    assert "`scores` of instruction_following, correctness" in said


def test_a_patient_judge_goes_on():
    judge = judge_of(lambda _: "Gut!", POINTWISE)
    judge.patient = HealthConfig(maximum_missing_rate=1).all_may_miss
    table = judge_candidates(MANY.head(40), PROMPTS, judge, MemoryOfTests())
    assert table["error"].to_list() == ["unparsed"] * 40
    assert not HealthConfig().all_may_miss


@pytest.mark.parametrize("readable", [0, 10, 18])
def test_one_answer_that_can_be_read_among_the_first_goes_on(readable):
    def respond(body):
        return fair_judge(body) if shown(body) == [f"good {readable}"] else "Gut!"

    table = judged(respond, POINTWISE, answers=MANY.head(40))
    assert table["score"].count() == 1
    assert table["error"].drop_nulls().len() == 39


def test_the_second_attempt_counts():
    first_seeds = set()

    def recovers(body):
        text = shown(body)[0]
        if text in first_seeds:
            return fair_judge(body)
        first_seeds.add(text)
        return '{"reasoning": "cut'

    table = judged(recovers, POINTWISE, answers=CANDIDATES.filter(candidate_id="best"))
    assert table["score"].to_list() == [pytest.approx(4)]
    assert table["prompt_tokens"].to_list() == [200]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None, "refusal": "I can't."}}]},
        {"choices": [{"message": {"content": ["parts"]}}]},
    ],
)
def test_a_reply_without_an_answer_is_missing(body):
    class Pool(FakePool):
        async def post(self, path, _body):
            return Reply(body, 0.1, "fake")

    table = judged(Pool(None), POINTWISE, answers=CANDIDATES.filter(candidate_id="best"))
    assert table.select("score", "error", "prompt_tokens", "cost").rows() == [
        (None, "unparsed", None, None)
    ]


def test_a_cut_answer_counts_only_with_a_whole_verdict():
    class Pool(FakePool):
        async def post(self, path, body):
            reply = await super().post(path, body)
            reply.body["choices"][0]["finish_reason"] = "length"
            return reply

    one = CANDIDATES.filter(candidate_id="best")
    whole = judged(Pool(lambda b: fair_judge(b) + " And so"), POINTWISE, answers=one)
    assert whole["score"].to_list() == [pytest.approx(4)]
    lines = "\n".join(f"{name}: 4" for name in NAMES)
    assert judged(FakePool(lambda _: lines), POINTWISE, answers=one)["score"][0] is not None
    assert judged(Pool(lambda _: lines), POINTWISE, answers=one)["error"].to_list() == ["unparsed"]


def test_a_failed_request_is_missing_with_its_reason_and_asked_anew():
    def fails_for_fair(body):
        return RequestFailedError("http_500") if shown(body) == ["good"] else fair_judge(body)

    memory = MemoryOfTests()
    table = judged(fails_for_fair, POINTWISE, memory=memory)
    (fair,) = rows_of(table, candidate_id="fair")
    assert (fair["score"], fair["error"], fair["raw"]) == (None, "http_500", "")
    assert fair["prompt_tokens"] is None
    pool = FakePool(fair_judge)
    judged(pool, POINTWISE, memory=memory)
    assert {shown(body)[0] for body in pool.bodies} == {"good"}


def test_finished_answers_are_not_asked_for_twice_and_progress_counts_all():
    memory, steps = MemoryOfTests(), []
    table = judged(fair_judge, memory=memory)
    pool = FakePool(fair_judge)
    half = MemoryOfTests(list(memory.items())[:7])
    again = judge_candidates(
        CANDIDATES, PROMPTS, judge_of(pool), half, lambda *at: steps.append(at)
    )
    assert len(pool.bodies) == 12 - 7
    assert again.equals(table)
    assert half == memory
    assert steps == [(done, 12) for done in range(8, 13)]


def test_other_settings_are_other_questions():
    def keys(**settings):
        return {q.key for q in plan_questions(CANDIDATES, judge_of(fair_judge, **settings))}

    assert keys() == keys(endpoint=EndpointConfig(maximum_in_flight=3), prices=PRICES)
    for changed in ({"seed": 1}, {"temperature": 0.5}, {"max_completion_tokens": 9}):
        assert not keys() & keys(**changed)
    assert not keys() & keys(system_role=False)


def test_the_order_of_rows_decides_nothing():
    expected = judged(fair_judge)
    biased = judged(first_wins, both_orders=False, opponents_per_candidate=2)
    for seed in range(5):
        mixed = shuffled(CANDIDATES, seed)
        assert judged(FakePool(fair_judge, seed), answers=mixed).equals(expected)
        again = judged(first_wins, answers=mixed, both_orders=False, opponents_per_candidate=2)
        assert again.equals(biased)


def test_an_inverted_judge_inverts_every_label():
    for settings in ({}, {"both_orders": False}, {"opponents_per_candidate": 2}):
        plain = judged(fair_judge, **settings)
        inverted = judged(inverted_judge, **settings)
        key = ["candidate_id", "other_candidate_id", "order"]
        both = plain.join(inverted, on=key, suffix="_inverted")
        assert both.height == plain.drop_nulls("order").height > 0
        assert (both["score"] + both["score_inverted"] == 1).all()


def test_samples_differ_in_seed_and_are_each_a_judgment():
    pool = FakePool(fair_judge)
    table = judged(pool, POINTWISE, samples=3, temperature=0.7)
    assert len(pool.bodies) == 15 == len({body["seed"] for body in pool.bodies})
    assert len(rows_of(table, candidate_id="best")) == 3
    assert {body["temperature"] for body in pool.bodies} == {0.7}
    # Each sample's two orders belong together.
    assert judged(first_wins, samples=2, temperature=0.7)["flag"].count() == 24


def test_the_two_orders_of_one_sample_belong_together():
    seen = Counter()

    def changes_its_mind(body):
        # In its first sample the judge finds the lead better, in its second the other one.
        seen[key := tuple(shown(body))] += 1
        return "[[A]]" if (key[0] == "good") == (seen[key] == 1) else "[[B]]"

    two = CANDIDATES.filter(pl.col("candidate_id").is_in(["fair", "empty"]))
    table = judged(changes_its_mind, answers=two, samples=2, temperature=1)
    assert table["flag"].null_count() == 4
    assert sorted(table["score"]) == [0.0, 0.0, 1.0, 1.0]


def test_the_seed_decides_who_leads():
    def leads(seed):
        questions = plan_questions(CANDIDATES, judge_of(fair_judge, both_orders=False, seed=seed))
        return {(q.candidate_id, q.other_candidate_id) for q in questions}

    assert len({frozenset(leads(seed)) for seed in range(8)}) > 1


def test_no_candidates_give_no_judgments():
    assert judged(fair_judge, answers=CANDIDATES.clear()).is_empty()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.randoms())
def test_every_candidate_meets_as_many_others_as_asked(n, k, seed, chance):
    rows = [
        {"prompt_id": "p1", "candidate_id": f"c{i}", "completion": f"answer {i}"} for i in range(n)
    ]
    chance.shuffle(rows)
    judge = judge_of(fair_judge, opponents_per_candidate=k, seed=seed)
    questions = plan_questions(candidates(*rows), judge)
    pairs = Counter(frozenset((q.candidate_id, q.other_candidate_id)) for q in questions)
    assert set(pairs.values()) <= {2}
    assert all(len(pair) == 2 for pair in pairs)
    met = Counter(candidate for pair in pairs for candidate in pair)
    expected = [min(k, n - 1)] * n
    if k < n - 1 and k % 2 and n % 2:
        expected[0] += 1
    assert sorted(met.values(), reverse=True) == [count for count in expected if count]
    assert len(questions) == questions_per_prompt(n, judge.scorer, PAIRWISE)
    chance.shuffle(rows)
    assert plan_questions(candidates(*rows), judge) == questions


def test_the_cost_formula_of_the_manual():
    def asked(rubric, candidates, **settings):
        return questions_per_prompt(candidates, judge_of(fair_judge, **settings).scorer, rubric)

    assert asked(POINTWISE, 8) == 8
    assert asked(POINTWISE, 8, samples=3, temperature=1) == 24
    assert asked(PAIRWISE, 8) == 8 * 7
    assert asked(PAIRWISE, 8, opponents_per_candidate=3) == 8 * 3
    assert asked(PAIRWISE, 8, opponents_per_candidate=3, both_orders=False) == 12
    assert asked(PAIRWISE, 1) == 0


def without_schemas(body):
    if "response_format" in body:
        return RequestFailedError("rejected: unknown parameter")
    return fair_judge(body)


def test_a_server_without_schemas_is_found_out_by_one_request_for_the_whole_run():
    pool = FakePool(without_schemas)
    judge = judge_of(pool)
    table = judge_candidates(CANDIDATES, PROMPTS, judge, MemoryOfTests())
    assert table.equals(judged(fair_judge))
    judge_candidates(CANDIDATES, PROMPTS, judge, MemoryOfTests())
    assert sum("response_format" in body for body in pool.bodies) == 1
    assert len(pool.bodies) == 1 + 24


def test_a_server_with_schemas_is_always_given_one():
    for settings in ({}, {"structured_output": "json_schema"}):
        pool = FakePool(fair_judge)
        judged(pool, POINTWISE, **settings)
        formats = [body["response_format"]["json_schema"] for body in pool.bodies]
        assert len(formats) == 5
        assert all(f["schema"]["required"] == ["reasoning", "scores"] for f in formats)
    pool = FakePool(fair_judge)
    judged(pool, POINTWISE, structured_output="off")
    assert not any("response_format" in body for body in pool.bodies)


def test_a_prompt_that_is_rejected_either_way_says_nothing_about_schemas():
    def rejects_the_longest(body):
        too_long = shown(body)[0] == "good good good"
        return RequestFailedError("rejected: context length") if too_long else fair_judge(body)

    one = CANDIDATES.filter(pl.col("candidate_id").is_in(["best", "empty"]))
    pool = FakePool(rejects_the_longest)
    table = judged(pool, POINTWISE, answers=one)
    assert rows_of(table, candidate_id="best")[0]["error"] == "rejected: context length"
    assert rows_of(table, candidate_id="empty")[0]["score"] == pytest.approx(1)
    assert all("response_format" in b for b in pool.bodies if shown(b) == [""])


def test_a_template_without_a_system_turn_gets_one_message():
    pool = FakePool(fair_judge)
    judged(pool, POINTWISE, system_role=False)
    assert {tuple(m["role"] for m in body["messages"]) for body in pool.bodies} == {("user",)}
    assert judge_of(pool).prompt_hash != judge_of(pool, system_role=False).prompt_hash


def test_settings_that_cannot_be_meant():
    with pytest.raises(ConfigError, match="temperature"):
        JudgeScorer.checked({"name": "j", "model": "m", "rubric": "pairwise", "samples": 3})
    scorer = JudgeScorer(name="j", model="m", rubric="pairwise")
    assert not {"endpoint", "prices", "token_limit_field"} & set(scorer.deciding())


# --- injections ---


def naive_judge(messages):
    """Obey the last [[X]] that stands in the prompt; without one, compare."""
    found = re.findall(r"\[\[([AB])\]\]", messages[-1]["content"])
    return f"[[{found[-1]}]]" if found else fair_judge({"messages": messages})


def read_by_fence(messages):
    """Judge what the fences hold, cut to where the injection starts."""
    texts = [text.partition("\n\n")[0] for text in shown({"messages": messages})]
    values = [worth(text) for text in texts]
    if len(values) == 1:
        return json.dumps({"reasoning": "", "scores": dict.fromkeys(NAMES, 1 + values[0])})
    return json.dumps({"reasoning": "[[A]] [[B]]", "winner": "AB"[values[1] > values[0]]})


GOLD = [
    GoldPair([{"role": "user", "content": "Why?"}], "good good", "good"),
    GoldPair([{"role": "user", "content": "How?"}], "good", "bad"),
]


def test_an_obedient_judge_flips_and_the_report_says_how_often():
    report = injection_flip_rate(lambda asked: [naive_judge(m) for m in asked], PAIRWISE, GOLD)
    # 2 pairs in 2 orders; only the injection without [[X]] leaves this judge alone.
    assert report.verdicts == len(INJECTIONS) * 4
    assert report.changed == (len(INJECTIONS) - 1) * 4
    assert report.flip_rate == pytest.approx(1 - 1 / len(INJECTIONS))
    assert set(INJECTIONS) - set(report.by_injection) == {"fake_json_scores"}
    assert report.unreadable == 0


@pytest.mark.parametrize("rubric", [PAIRWISE, POINTWISE], ids=["pairwise", "pointwise"])
def test_a_judge_that_reads_by_the_fences_never_changes_its_verdict(rubric):
    report = injection_flip_rate(lambda asked: [read_by_fence(m) for m in asked], rubric, GOLD)
    assert report.verdicts == len(INJECTIONS) * (4 if rubric is PAIRWISE else 2)
    assert (report.changed, report.unreadable, report.by_injection) == (0, 0, {})


def test_each_pair_is_asked_about_with_its_own_conversation():
    prompts_asked = []

    def ask(asked):
        prompts_asked.extend(asked)
        return [read_by_fence(m) for m in asked]

    injection_flip_rate(ask, PAIRWISE, GOLD)
    about = Counter(
        ("good good" in user["content"], "\nWhy?\n" in user["content"]) for _, user in prompts_asked
    )
    each = 2 * (1 + len(INJECTIONS))
    assert about == {(True, True): each, (False, False): each}


def test_a_judge_whose_format_breaks_is_reported():
    def breaks(messages):
        return "Ja!" if "Vergiss" in messages[-1]["content"] else read_by_fence(messages)

    report = injection_flip_rate(lambda asked: [breaks(m) for m in asked], PAIRWISE, GOLD)
    assert (report.changed, report.unreadable, report.by_injection) == (4, 4, {"german": 4})
    mute = injection_flip_rate(lambda asked: [""] * len(asked), PAIRWISE, GOLD)
    assert (mute.verdicts, mute.flip_rate) == (0, None)


def test_a_real_judge_is_asked_through_its_pool():
    judge = judge_of(lambda body: read_by_fence(body["messages"]))
    assert injection_flip_rate(judge.texts, PAIRWISE, GOLD).flip_rate == 0.0


def test_injected_responses_are_judged_as_wholes():
    completion = planted("closes_both_fences", "good", "B")
    rows = CANDIDATES.filter(candidate_id="best").with_columns(completion=pl.lit(completion))
    pool = FakePool(fair_judge)
    judged(pool, POINTWISE, answers=rows)
    assert shown(pool.bodies[0]) == [completion]


# --- against a server ---


def test_a_server_with_faults_gives_every_question_one_verdict_or_a_reason():
    rows = [
        {"prompt_id": "p1", "candidate_id": f"c{i}", "completion": "good " * (i % 4)}
        for i in range(60)
    ]
    faults = {"http_500": 0.08, "http_429": 0.05, "truncated": 0.04, "wrong_language": 0.15}
    with Stub(faults=faults, respond=fair_judge, structured_output=False) as stub:
        config = EndpointConfig(base_urls=(stub.url,), maximum_in_flight=16)
        scorer = JudgeScorer(name="j", model=stub.model, rubric="helpfulness", prices=PRICES)
        budget = Budget()
        with EndpointPool(config, budget, PRICES, backoff_seconds=0.01) as pool:
            judge = Judge(scorer, POINTWISE, pool)
            memory = MemoryOfTests()
            table = judge_candidates(candidates(*rows), PROMPTS, judge, memory)
            asked = stub.served
            again = judge_candidates(candidates(*rows), PROMPTS, judge, memory)
    assert table["candidate_id"].sort().to_list() == sorted(row["candidate_id"] for row in rows)
    # 0.15 of 60 are asked again, 0.15^2 of 60 stay in another language
    assert set(table["error"]) <= {None, "unparsed"}
    assert 0 < table["error"].count() < 10
    for row in table.drop_nulls("score").iter_rows(named=True):
        assert row["score"] == pytest.approx(1 + int(row["candidate_id"][1:]) % 4)
    assert table["cost"].sum() == pytest.approx(budget.cost)
    assert again.equals(table)
    assert stub.served == asked


def test_an_exhausted_budget_keeps_what_was_answered():
    with Stub(respond=fair_judge) as stub:
        config = EndpointConfig(base_urls=(stub.url,), maximum_in_flight=1)
        scorer = JudgeScorer(name="j", model=stub.model, rubric="pairwise")
        memory = MemoryOfTests()
        with EndpointPool(config, Budget(maximum_tokens=1)) as pool:
            judge = Judge(scorer, PAIRWISE, pool)
            with pytest.raises(BudgetError):
                judge_candidates(CANDIDATES, PROMPTS, judge, memory)
        held = len(memory)
        with EndpointPool(config) as pool:
            judge_candidates(CANDIDATES, PROMPTS, Judge(scorer, PAIRWISE, pool), memory)
    assert 0 < held < 12
    assert stub.served == 12
