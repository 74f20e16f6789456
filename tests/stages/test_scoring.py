"""Scores: a missing verdict is never a low one, and the aggregate is what a hand gets."""

import json

import polars as pl
import pytest

from stages.aggregation import aggregate
from stages.errors import ConfigError, DataError, MissingFileError
from stages.reward_model import RewardOutcome
from stages.scoring import (
    RULES_VERSION,
    RulesScorer,
    ScoringConfig,
    VotesScorer,
    judge_by_rewards,
    judge_by_rules,
    judge_by_votes,
    read_checks,
    read_votes,
    require_same_prompt,
    scores,
    unknown_votes,
    unread_votes,
    votes_fingerprint,
)
from stages.tables import JUDGMENTS, SCORES
from tests.stages.rows import candidates, prompts, shuffled, table_of

SUM = json.dumps({"numbers": [147, 285]})
PROMPTS = prompts(
    {"prompt_id": "p1", "verifier": "sum", "ground_truth": SUM},
    {"prompt_id": "p2", "verifier": None, "ground_truth": None},
    {"prompt_id": "p3", "verifier": "sum", "ground_truth": None},
    {"prompt_id": "p4", "verifier": "sort", "ground_truth": '{"words": ["anchor", "lamp"]}'},
)
CANDIDATES = candidates(
    {"prompt_id": "p1", "candidate_id": "right", "completion": "total 432."},
    {"prompt_id": "p1", "candidate_id": "close", "completion": "total 422."},
    {"prompt_id": "p1", "candidate_id": "wrong", "completion": "no idea"},
    {"prompt_id": "p1", "candidate_id": "empty", "completion": ""},
    {"prompt_id": "p1", "candidate_id": "lost", "completion": None, "error": "timeout"},
    {"prompt_id": "p2", "candidate_id": "free", "completion": "total 432."},
    {"prompt_id": "p3", "candidate_id": "untold", "completion": "total 432."},
    {"prompt_id": "p4", "candidate_id": "sorted", "completion": "Sorted: anchor, lamp."},
)


def judged(answers=CANDIDATES, asked=PROMPTS, name="rules"):
    return judge_by_rules(answers, asked, RulesScorer(name=name))


def test_each_prompts_own_verifier_judges_and_none_means_no_score():
    verdicts = {row["candidate_id"]: row for row in judged().iter_rows(named=True)}
    scores = {candidate: row["score"] for candidate, row in verdicts.items()}
    # Two of three digits of 422 are right: 0.8 * 2 / 3
    assert scores == {
        "right": 1.0,
        "close": pytest.approx(0.8 * 2 / 3),
        "wrong": 0.0,
        "empty": 0.0,
        "lost": None,
        "free": None,
        "untold": None,
        "sorted": 1.0,
    }
    assert verdicts["close"]["raw"] == "total 422, expected 432"
    errors = {candidate: row["error"] for candidate, row in verdicts.items() if row["error"]}
    assert errors == {
        "lost": "no_completion",
        "free": "no verifier for this prompt",
        "untold": "no verifier for this prompt",
    }
    assert all(verdicts[name]["raw"] == error for name, error in errors.items())
    assert {row["scorer_version"] for row in verdicts.values()} == {RULES_VERSION}


def test_judgments_are_rows_of_the_table_whose_ids_come_from_content():
    judgments = judged()
    JUDGMENTS.to_arrow(judgments)
    ids = dict(judgments.select("candidate_id", "judgment_id").iter_rows())
    assert len(set(ids.values())) == CANDIDATES.height
    again = judged(shuffled(CANDIDATES, 3), shuffled(PROMPTS, 3))
    assert dict(again.select("candidate_id", "judgment_id").iter_rows()) == ids
    assert not set(judged(name="other")["judgment_id"]) & set(ids.values())


def test_no_candidates_give_no_judgments_and_no_scores():
    judgments = judged(CANDIDATES.clear())
    assert JUDGMENTS.to_arrow(judgments).num_rows == 0
    assert SCORES.to_arrow(scores(judgments, CANDIDATES, ScoringConfig())).num_rows == 0


def test_an_unknown_verifier_names_the_nearest():
    asked = prompts({"prompt_id": "p1", "verifier": "sumn", "ground_truth": SUM})
    with pytest.raises(DataError, match=r"unknown verifier 'sumn'; nearest known: sum\b"):
        judged(CANDIDATES.filter(prompt_id="p1"), asked)


@pytest.mark.parametrize(
    ("truth", "what"),
    [
        ("432", "TypeError"),
        ("{numbers", "JSONDecodeError"),
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError('numbers')"),
        ('{"numbers": "abc"}', "TypeError"),
        ('{"numbers": null}', "TypeError"),
    ],
)
def test_a_ground_truth_that_the_verifier_cannot_use_names_the_prompt(truth, what):
    asked = prompts({"prompt_id": "p1", "verifier": "sum", "ground_truth": truth})
    with pytest.raises(DataError) as caught:
        judged(CANDIDATES.filter(prompt_id="p1"), asked)
    message = str(caught.value)
    assert f"the ground truth {truth!r} is not what verifier 'sum' needs" in message
    assert what in message
    assert "p1" in caught.value.where


OWNERS = candidates(
    {"candidate_id": "c1", "prompt_id": "p1"}, {"candidate_id": "c2", "prompt_id": "p2"}
)


def verdicts(*scored):
    """Return judgments from (candidate, scorer, score)."""
    rows = [
        {"judgment_id": f"j{i}", "candidate_id": c, "scorer": s, "score": v}
        for i, (c, s, v) in enumerate(scored)
    ]
    return table_of(JUDGMENTS, rows)


VERDICTS = verdicts(
    ("c1", "judge", 1.0),
    ("c1", "judge", None),
    ("c1", "judge", 4.0),
    ("c1", "judge", 1.0),
    ("c1", "rules", 0.5),
    ("c2", "judge", None),
    ("c2", "judge", None),
)


def test_scores_are_of_every_scorer_and_then_of_the_juries():
    members = [{"kind": "rules", "name": name} for name in ("judge", "rules")]
    jury = {"kind": "jury", "name": "jury", "members": ["judge", "rules"], "vote": "mean"}
    table = scores(VERDICTS, OWNERS, ScoringConfig.checked({"scorers": [*members, jury]}))
    SCORES.to_arrow(table)
    # judge: (1 + 4 + 1) / 3 = 2, spread sqrt((1 + 4 + 1) / (3 - 1)) = sqrt(3); jury: (2 + 0.5) / 2
    columns = ["candidate_id", "prompt_id", "scorer", "score", "spread", "judgments"]
    assert list(table.select(*columns, "missing_share").iter_rows())[:3] == [
        ("c1", "p1", "judge", 2.0, pytest.approx(3**0.5), 4, 0.25),
        ("c1", "p1", "rules", 0.5, None, 1, 0.0),
        ("c2", "p2", "judge", None, None, 2, 1.0),
    ]
    juries = table.filter(scorer="jury").select("candidate_id", "score", "missing_share")
    assert juries.rows() == [("c1", 1.25, 0.0), ("c2", None, 1.0)]


def test_scores_do_not_depend_on_row_order():
    many = verdicts(*(("c1", "judge", 0.1 * i) for i in range(50)))
    expected = scores(many, OWNERS, ScoringConfig())
    for seed in range(10):
        found = scores(shuffled(many, seed), shuffled(OWNERS, seed), ScoringConfig())
        assert found.equals(expected)


def test_scores_of_a_part_are_of_its_candidates_only():
    part = scores(VERDICTS, OWNERS.filter(pl.col("candidate_id") == "c2"), ScoringConfig())
    assert part["candidate_id"].to_list() == ["c2"]


def test_two_scorers_need_two_names():
    with pytest.raises(ConfigError, match="two scorers have the same name: rules, rules"):
        ScoringConfig.checked({"scorers": [{"kind": "rules"}, {"kind": "rules"}]})


JURY = {"kind": "jury", "name": "jury", "members": ["a", "b"]}
SINGLE = [{"kind": "rules", "name": name} for name in "abc"]


@pytest.mark.parametrize(
    ("scorers", "problem"),
    [
        ([SINGLE[0], JURY], "unknown members of 'jury': b"),
        (
            [*SINGLE, JURY, {**JURY, "name": "upper", "members": ["a", "jury"]}],
            "unknown members of 'upper': jury",
        ),
    ],
)
def test_a_jurys_members_are_other_scorers_of_the_run_and_no_juries(scorers, problem):
    with pytest.raises(ConfigError, match=problem):
        ScoringConfig.checked({"scorers": scorers})


@pytest.mark.parametrize(
    ("name", "needed"), [("a", ["a"]), ("c", ["c"]), ("jury", ["a", "b", "jury"])]
)
def test_a_jury_needs_its_members_and_any_other_only_itself(name, needed):
    config = ScoringConfig.checked({"scorers": [*SINGLE, JURY]})
    assert [scorer.name for scorer in config.needed_for(name).scorers] == needed
    assert [scorer.name for scorer in config.judges] == ["a", "b", "c"]
    assert [scorer.name for scorer in config.juries] == ["jury"]


# --- rewards


class Lengths:
    """Rewards an answer with its length; longer ones than ten characters don't fit."""

    model_name, weights_hash = "lengths", "w1"

    def __init__(self):
        self.asked = []

    def score(self, conversations, _tell=None):
        self.asked += conversations
        lengths = [len(turns[-1]["content"]) for turns in conversations]
        return [
            RewardOutcome(float(n), n) if n <= 10 else RewardOutcome(None, n, "too_long")
            for n in lengths
        ]


def test_a_reward_is_of_the_whole_conversation_and_missing_with_a_reason():
    model = Lengths()
    judgments = judge_by_rewards(CANDIDATES, PROMPTS, "reward", model)
    JUDGMENTS.to_arrow(judgments)
    columns = ("score", "error", "raw", "prompt_tokens")
    found = {c: rest for c, *rest in judgments.select("candidate_id", *columns).iter_rows()}
    assert found == {
        "right": [10.0, None, "10.0", 10],
        "close": [10.0, None, "10.0", 10],
        "wrong": [7.0, None, "7.0", 7],
        "empty": [0.0, None, "0.0", 0],
        "lost": [None, "no_completion", "no_completion", None],
        "free": [10.0, None, "10.0", 10],
        "untold": [10.0, None, "10.0", 10],
        "sorted": [None, "too_long", "too_long", 21],
    }
    assert set(judgments.select("scorer", "scorer_model", "scorer_version").iter_rows()) == {
        ("reward", "lengths", "w1")
    }
    assert len(model.asked) == 7, "what is missing is not asked about"
    assert model.asked[2] == [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "no idea"},
    ]


def test_rewards_belong_to_candidates_by_id():
    plain = judge_by_rewards(CANDIDATES, PROMPTS, "reward", Lengths())
    mixed = judge_by_rewards(shuffled(CANDIDATES, 2), shuffled(PROMPTS, 5), "reward", Lengths())
    assert mixed.sort("judgment_id").equals(plain.sort("judgment_id"))


def test_without_any_completion_a_reward_model_is_asked_nothing():
    model = Lengths()
    judgments = judge_by_rewards(CANDIDATES.filter(candidate_id="lost"), PROMPTS, "r", model)
    assert judgments["score"].to_list() == [None]
    assert model.asked == []


# --- the other verifiers

CODE = prompts(
    {"prompt_id": "p8", "verifier": "numeric", "ground_truth": '{"answer": 7}'},
    {"prompt_id": "p9", "verifier": "python_tests", "ground_truth": '{"tests": ["assert f()"]}'},
)
CODERS = candidates(
    {"prompt_id": "p8", "candidate_id": "seven", "completion": "It is 7."},
    {"prompt_id": "p8", "candidate_id": "time", "completion": "It is 7:00"},
    {"prompt_id": "p9", "candidate_id": "code", "completion": "def f(): return True"},
)


def test_code_runs_only_when_the_scorer_allows_it():
    with pytest.raises(DataError, match=r"verifier 'python_tests' runs code .* not allowed") as no:
        judged(CODERS, CODE)
    assert "p9" in no.value.where
    assert "allow_code_execution: true" in no.value.expected
    judgments = judge_by_rules(CODERS, CODE, RulesScorer(allow_code_execution=True))
    assert dict(judgments.select("candidate_id", "score").iter_rows()) == {
        "seven": 1.0,
        "time": None,
        "code": 1.0,
    }


def test_every_ground_truth_is_read_before_any_answer_is_judged(monkeypatch):
    bad = prompts({"prompt_id": "p7", "verifier": "numeric", "ground_truth": '{"anwser": 7}'})
    asked = pl.concat([CODE.head(1), bad])
    with pytest.raises(DataError, match="unknown key 'anwser'; nearest known: answer") as caught:
        read_checks(asked, RulesScorer())
    assert "p7" in caught.value.where
    # Prompts of other parts are theirs to check.
    assert judged(CODERS.head(1), asked)["score"].to_list() == [1.0]


def test_a_verifier_that_fails_gives_no_verdict_and_stops_nothing(monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("stages.verifiers.Numeric.check", fail)
    row = judged(CODERS.head(1), CODE).row(0, named=True)
    assert (row["score"], row["raw"]) == (None, "the verifier failed: RuntimeError")


# --- votes

VOTES = """candidate_id,score,voter,comment
right,5,ann,"good, short"
right,4,bob,
right,4,bob,
close,nan,ann,
close,,bob,no idea
close,2.5,,
"""


def voted(tmp_path, text=VOTES, name="votes.csv", **options):
    path = tmp_path / name
    path.write_text(text)
    return VotesScorer(name="people", path=path, **options)


def test_every_vote_is_a_judgment_and_no_number_is_missing(tmp_path):
    scorer = voted(tmp_path)
    judgments = judge_by_votes(CANDIDATES, read_votes(scorer), scorer)
    JUDGMENTS.to_arrow(judgments)
    assert judgments["judgment_id"].n_unique() == 6
    assert judgments.select("candidate_id", "score", "raw").rows() == [
        ("right", 5.0, '{"comment":"good, short","score":"5","voter":"ann"}'),
        ("right", 4.0, '{"score":"4","voter":"bob"}'),
        ("right", 4.0, '{"repeat":1,"score":"4","voter":"bob"}'),
        ("close", None, '{"score":"nan","voter":"ann"}'),
        ("close", None, '{"comment":"no idea","voter":"bob"}'),
        ("close", 2.5, '{"score":"2.5"}'),
    ]
    assert judgments["error"].to_list() == [None] * 3 + ["not_a_score"] * 2 + [None]
    assert "2 of 6 votes count as missing" in unread_votes(read_votes(scorer), scorer)
    # (5 + 4 + 4) / 3; 2.5 of one, two missing
    scored = aggregate(judgments, CANDIDATES).select("candidate_id", "score", "missing_share")
    assert scored.rows() == [("close", 2.5, 2 / 3), ("right", pytest.approx(13 / 3), 0.0)]


def test_votes_of_a_part_are_those_on_its_candidates(tmp_path):
    scorer = voted(tmp_path)
    votes = read_votes(scorer)
    whole = judge_by_votes(CANDIDATES, votes, scorer)
    parts = [judge_by_votes(CANDIDATES[i], votes, scorer) for i in range(CANDIDATES.height)]
    assert pl.concat(parts).sort("judgment_id").equals(whole.sort("judgment_id"))


def test_votes_come_from_jsonl_and_parquet_too(tmp_path):
    rows = [{"candidate_id": "right", "score": 1}, {"candidate_id": "close", "score": True}]
    scorer = voted(tmp_path, "\n".join(map(json.dumps, rows)), "votes.jsonl")
    # True is no number.
    assert judge_by_votes(CANDIDATES, read_votes(scorer), scorer)["score"].to_list() == [1.0, None]
    path = tmp_path / "votes.parquet"
    pl.DataFrame({"candidate_id": ["right"], "score": [0.5]}).write_parquet(path)
    scorer = VotesScorer(name="people", path=path)
    assert judge_by_votes(CANDIDATES, read_votes(scorer), scorer)["score"].to_list() == [0.5]


def test_votes_on_unknown_candidates_are_counted_and_named(tmp_path):
    text = VOTES + "gone,1,ann,\ngone,2,bob,\nnowhere,1,ann,\n"
    scorer = voted(tmp_path, text)
    known = CANDIDATES["candidate_id"]
    assert unknown_votes(read_votes(voted(tmp_path)), known, scorer) == ""
    scorer = voted(tmp_path, text)
    with pytest.raises(DataError, match="3 of 9 votes are on 2 unknown candidates: gone, nowhere"):
        unknown_votes(read_votes(scorer), known, scorer)
    lenient = voted(tmp_path, text, unknown_candidates="warn")
    assert "3 of 9 votes" in unknown_votes(read_votes(lenient), known, lenient)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("candidate_id,rating\nright,1\n", "unknown columns ['rating']"),
        ("candidate_id,score\n,1\n", "an incomplete vote"),
        ("candidate_id\nright\n", "an incomplete vote"),
        ("candidate_id,other_candidate_id,winner\na,b,tie\n", "unknown columns ['winner']"),
    ],
)
def test_a_votes_file_with_other_columns_is_refused(tmp_path, text, said):
    with pytest.raises(DataError) as caught:
        read_votes(voted(tmp_path, text))
    assert said in str(caught.value)
    assert "votes.csv, line 2" in caught.value.where


PAIRWISE = """candidate_id,other_candidate_id,score,voter
right,close,1,ann
right,close,0.5,bob
close,wrong,2,ann
wrong,right,0,bob
"""


def test_votes_on_two_candidates_count_for_both(tmp_path):
    scorer = voted(tmp_path, PAIRWISE)
    judgments = judge_by_votes(CANDIDATES, read_votes(scorer), scorer)
    JUDGMENTS.to_arrow(judgments)
    columns = ("candidate_id", "other_candidate_id", "score", "error")
    assert judgments.select(columns).rows() == [
        ("right", "close", 1.0, None),
        ("right", "close", 0.5, None),
        # 2 says nothing about who won.
        ("close", "wrong", None, "not_a_score"),
        ("wrong", "right", 0.0, None),
    ]
    assert unread_votes(read_votes(scorer), scorer).startswith("1 of 4 votes count as missing")
    # right won 1, tied one and won 1: 2.5 of 3; close lost and tied: 0.5 of 2
    scored = aggregate(judgments, CANDIDATES).select("candidate_id", "score")
    assert dict(scored.iter_rows()) == {"right": 2.5 / 3, "close": 0.25, "wrong": 0.0}


def test_one_file_holds_votes_on_one_candidate_or_on_two(tmp_path):
    mixed = PAIRWISE + "right,,5,ann\n"
    with pytest.raises(DataError, match="votes on one candidate and votes on two in one file"):
        read_votes(voted(tmp_path, mixed))


def test_two_answers_to_different_prompts_cannot_be_compared(tmp_path):
    scorer = voted(tmp_path, PAIRWISE)
    require_same_prompt(read_votes(scorer), CANDIDATES, scorer)
    scorer = voted(tmp_path, PAIRWISE + "right,free,1,ann\n")
    with pytest.raises(DataError, match=r"1 votes are on answers to two.*right and free"):
        require_same_prompt(read_votes(scorer), CANDIDATES, scorer)


def test_an_unknown_other_candidate_is_counted_too(tmp_path):
    scorer = voted(tmp_path, PAIRWISE + "right,gone,1,ann\n")
    with pytest.raises(DataError, match="1 of 5 votes are on 1 unknown candidates: gone"):
        unknown_votes(read_votes(scorer), CANDIDATES["candidate_id"], scorer)


def test_a_missing_votes_file_names_the_scorer(tmp_path):
    scorer = VotesScorer(name="people", path=tmp_path / "none.csv")
    with pytest.raises(MissingFileError, match="scorer 'people'"):
        read_votes(scorer)


def test_the_fingerprint_follows_the_content(tmp_path):
    before = votes_fingerprint(voted(tmp_path))
    assert votes_fingerprint(voted(tmp_path, VOTES + "right,1,,\n")) != before
    assert votes_fingerprint(voted(tmp_path)) == before


def test_scorers_are_told_apart_by_their_kind():
    config = ScoringConfig.checked(
        {"scorers": [{"kind": "rules"}, {"kind": "votes", "name": "people", "path": "v.csv"}]}
    )
    assert [type(scorer) for scorer in config.scorers] == [RulesScorer, VotesScorer]
