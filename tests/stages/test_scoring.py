"""Scores: a missing verdict is never a low one, and the aggregate is what a hand gets."""

import json

import polars as pl
import pytest

from stages.errors import ConfigError, DataError, MissingFileError
from stages.scoring import (
    RULES_VERSION,
    RulesScorer,
    ScoringConfig,
    VotesScorer,
    aggregate,
    judge_by_rules,
    judge_by_votes,
    read_checks,
    read_votes,
    unknown_votes,
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
    text = VOTES + "gone,1,ann,\ngone,2,bob,\nlost,1,ann,\n"
    scorer = voted(tmp_path, text)
    known = CANDIDATES["candidate_id"]
    assert unknown_votes(read_votes(voted(tmp_path)), known, scorer) == ""
    scorer = voted(tmp_path, text)
    with pytest.raises(DataError, match="3 of 9 votes are on 2 unknown candidates: gone, lost"):
        unknown_votes(read_votes(scorer), known, scorer)
    lenient = voted(tmp_path, text, unknown_candidates="warn")
    assert "3 of 9 votes" in unknown_votes(read_votes(lenient), known, lenient)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("candidate_id,rating\nright,1\n", "unknown columns ['rating']"),
        ("candidate_id,score\n,1\n", "an incomplete vote"),
        ("candidate_id\nright\n", "an incomplete vote"),
        ("candidate_id,other_candidate_id,winner\na,b,tie\n", "pairwise votes are not read yet"),
    ],
)
def test_a_votes_file_with_other_columns_is_refused(tmp_path, text, said):
    with pytest.raises(DataError) as caught:
        read_votes(voted(tmp_path, text))
    assert said in str(caught.value)
    assert "votes.csv, row 1" in caught.value.where


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
