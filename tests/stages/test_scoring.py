"""Scores: a missing verdict is never a low one, and the aggregate is what a hand gets."""

import json

import polars as pl
import pytest

from stages.errors import ConfigError, DataError
from stages.scoring import RULES_VERSION, RulesScorer, ScoringConfig, aggregate, judge_by_rules
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
        "free": None,
        "untold": None,
        "sorted": 1.0,
    }
    assert verdicts["close"]["raw"] == "total 422, expected 432"
    assert verdicts["free"]["raw"] == "no verifier for this prompt"
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
    assert SCORES.to_arrow(aggregate(judgments, CANDIDATES)).num_rows == 0


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


def verdicts(*scored):
    """Return judgments from (candidate, scorer, score)."""
    rows = [
        {"judgment_id": f"j{i}", "candidate_id": c, "scorer": s, "score": v}
        for i, (c, s, v) in enumerate(scored)
    ]
    return table_of(JUDGMENTS, rows)


OWNERS = candidates(
    {"candidate_id": "c1", "prompt_id": "p1"}, {"candidate_id": "c2", "prompt_id": "p2"}
)
VERDICTS = verdicts(
    ("c1", "judge", 1.0),
    ("c1", "judge", None),
    ("c1", "judge", 4.0),
    ("c1", "judge", 1.0),
    ("c1", "rules", 0.5),
    ("c2", "judge", None),
    ("c2", "judge", None),
)


def test_the_aggregate_is_the_mean_over_what_could_be_parsed():
    table = aggregate(VERDICTS, OWNERS)
    SCORES.to_arrow(table)
    # (1 + 4 + 1) / 3 = 2; spread: sqrt((1 + 4 + 1) / (3 - 1)) = sqrt(3)
    columns = ["candidate_id", "prompt_id", "scorer", "score", "spread", "judgments"]
    assert list(table.select(*columns, "missing_share").iter_rows()) == [
        ("c1", "p1", "judge", 2.0, pytest.approx(3**0.5), 4, 0.25),
        ("c1", "p1", "rules", 0.5, None, 1, 0.0),
        ("c2", "p2", "judge", None, None, 2, 1.0),
    ]


def test_the_aggregate_does_not_depend_on_row_order():
    many = verdicts(*(("c1", "judge", 0.1 * i) for i in range(50)))
    expected = aggregate(many, OWNERS)
    for seed in range(10):
        assert aggregate(shuffled(many, seed), shuffled(OWNERS, seed)).equals(expected)


def test_scores_of_a_part_are_of_its_candidates_only():
    part = aggregate(VERDICTS, OWNERS.filter(pl.col("candidate_id") == "c2"))
    assert part["candidate_id"].to_list() == ["c2"]


def test_two_scorers_need_two_names():
    with pytest.raises(ConfigError, match="two scorers have the same name: rules, rules"):
        ScoringConfig.checked({"scorers": [{"kind": "rules"}, {"kind": "rules"}]})
