"""Unpaired answers: from the pairs' labels, or from every answer's own score."""

import datasets
import polars as pl
import pytest

from stages.errors import ConfigError, DataError
from stages.export import preference_rows
from stages.unpaired import UnpairedConfig, scored_rows, unpaired_lines, unpaired_rows
from tests.stages.rows import candidates, pairs, prompts, scores

# Of prompt p: a and b are chosen, b and c rejected; d is in no pair. Of q: only e over f.
COMPLETIONS = {"a": "p", "b": "p", "c": "p", "d": "p", "e": "q", "f": "q"}
PAIRS = [("1", "p", "a", "b"), ("2", "p", "a", "c"), ("3", "p", "b", "c"), ("4", "q", "e", "f")]
SCORES = {"p": {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.9}, "q": {"e": 0.8, "f": 0.1}}
BAND = UnpairedConfig(desirable_minimum_score=0.8, undesirable_maximum_score=0.1)


def answered(**changed):
    return candidates(
        *(
            {"candidate_id": c, "prompt_id": p, "completion": f"text {c}", **changed.get(c, {})}
            for c, p in COMPLETIONS.items()
        )
    )


def preference():
    kept = [
        {
            "pair_id": pair,
            "prompt_id": prompt,
            "chosen_candidate_id": chosen,
            "rejected_candidate_id": rejected,
            "scorer": "rules",
        }
        for pair, prompt, chosen, rejected in PAIRS
    ]
    asked = [
        {"prompt_id": p, "messages": [{"role": "user", "content": f"question {p}"}]} for p in "pq"
    ]
    return preference_rows(pairs(*kept), prompts(*asked), answered(), "train")


def facts(rows):
    return list(rows.select("candidate_id", "label", "pair_id").iter_rows())


def test_answers_of_pairs_are_there_once_with_each_label():
    rows = preference()
    found = unpaired_rows(rows)
    assert facts(found) == [
        ("a", True, "1"),
        ("b", False, "1"),
        ("c", False, "2"),
        ("b", True, "3"),
        ("e", True, "4"),
        ("f", False, "4"),
    ]
    assert found["completion"][0].to_list() == [{"role": "assistant", "content": "text a"}]
    assert found["prompt"][0].to_list() == [{"role": "user", "content": "question p"}]
    assert list(unpaired_lines(rows, found).iter_rows()) == [("1", 1), ("2", 1), ("3", 4), ("4", 5)]


def test_trl_itself_unpairs_to_the_same_rows():
    from trl import unpair_preference_dataset

    rows = preference().filter(pl.col("pair_id").is_in(["1", "4"]))
    theirs = unpair_preference_dataset(datasets.Dataset.from_list(rows.to_dicts())).to_list()
    ours = unpaired_rows(rows).to_dicts()
    columns = ("prompt", "completion", "label")
    assert sorted(str([row[c] for c in columns]) for row in ours) == sorted(
        str([row[c] for c in columns]) for row in theirs
    )


def test_every_answer_of_the_prompts_is_labelled_by_its_score():
    rows = preference()
    found = scored_rows(rows, answered(), scores(SCORES), BAND)
    assert facts(found) == [
        ("a", True, "1"),
        ("c", False, "2"),  # b is between the thresholds
        ("d", True, None),  # in no pair
        ("e", True, "4"),
        ("f", False, "4"),
    ]
    assert found.schema == unpaired_rows(rows).schema
    # Pair 3's chosen, b, is not in the file.
    assert list(unpaired_lines(rows, found).iter_rows()) == [("1", 1), ("2", 1), ("4", 4)]


def test_only_finished_scored_answers_to_the_rows_prompts_count():
    rows = preference().filter(prompt_id="p")
    changed = answered(
        a={"finish_reason": "length"}, c={"completion": " \n"}, d={"completion": None}
    )
    unscored = scores({**SCORES, "q": {"e": None, "f": 0.1}})
    others = scores({"p": {"b": 1.0}}, scorer="another")
    assert scored_rows(rows, changed, pl.concat([unscored, others]), BAND).is_empty()
    assert facts(scored_rows(preference(), changed, unscored, BAND)) == [("f", False, "4")]
    assert scored_rows(rows.clear(), changed, unscored, BAND).is_empty()


def test_a_mixed_scorer_has_no_scores_of_its_own():
    with pytest.raises(DataError, match="scored by 'rules'"):
        scored_rows(preference(), answered(), scores(SCORES, scorer="judge"), BAND)


@pytest.mark.parametrize("high", [0.5, 0.4])
def test_no_answer_can_be_both(high):
    values = {"desirable_minimum_score": high, "undesirable_maximum_score": 0.5}
    with pytest.raises(ConfigError, match="must be below"):
        UnpairedConfig.checked(values)
