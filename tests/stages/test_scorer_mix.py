"""Weighted mixes of scorers."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import DataError
from stages.no_pairs import explain_no_pairs
from stages.pairing import PairingConfig, pair
from stages.scorer_mix import mix_name, mixed_scores
from tests.stages.rows import candidates_of, scores, shuffled


def both(first, second):
    return pl.concat([scores({"p": first}), scores({"p": second}, scorer="judge")])


def mixed(first, second, rules=1.0, judge=1.0):
    rows = mixed_scores(both(first, second), {"rules": rules, "judge": judge})
    return dict(rows.select("candidate_id", "score").iter_rows())


def test_each_scorer_counts_in_its_own_standard_deviations():
    """Mean 2, sigma 1 by both: `judge` has another scale. Standardised: -1, 1 and 1, -1."""
    found = mixed({"a": 1, "b": 3}, {"a": 300, "b": 100}, rules=1, judge=3)
    assert found == {"a": pytest.approx(-0.25 + 0.75), "b": pytest.approx(0.25 - 0.75)}


def test_opposite_verdicts_of_equal_weight_are_a_tie():
    values = {"a": 0.1, "b": 0.2, "c": 0.7}
    assert set(mixed(values, {c: -v for c, v in values.items()}).values()) == {0.0}


def test_a_scorer_that_ties_all_adds_nothing():
    # The mean of three 0.1 is not 0.1: that is rounding, no deviation.
    found = mixed({"a": 0.1, "b": 0.1, "c": 0.1}, {"a": 1, "b": 1, "c": 4})
    assert found["a"] == found["b"] == pytest.approx(-(0.5**0.5) / 2)
    assert found["c"] == pytest.approx(0.5**0.5)


def test_a_candidate_without_one_of_the_scores_takes_no_part():
    found = mixed({"a": 0, "b": 1, "c": None}, {"a": 0, "b": 1, "c": 9, "d": 9})
    assert found == {"a": -1.0, "b": 1.0}


def test_a_mix_is_named_by_its_shares():
    assert mix_name({"rules": 3, "judge": 1}) == "mix:judge*0.25+rules*0.75"
    assert mix_name({"rules": 6.0, "judge": 2.0}) == mix_name({"judge": 1, "rules": 3})


# As wide as rewards are: half of the least double is 0, and then two scores tie.
reward = st.floats(-100, 100, width=32, allow_subnormal=False)
value = st.one_of(st.none(), reward, st.integers(0, 2))
of_prompt = st.fixed_dictionaries(dict.fromkeys("abcd", value))


@given(of_prompt, of_prompt, st.integers(0, 9), st.sampled_from([0.5, 2.0, 8.0]))
def test_row_order_other_prompts_and_scales_have_no_say(first, second, seed, factor):
    rows, weights = both(first, second), {"rules": 1.0, "judge": 2.5}
    before = mixed_scores(rows, weights).sort("candidate_id")
    assert mixed_scores(shuffled(rows, seed), weights).sort("candidate_id").equals(before)
    others = rows.with_columns(prompt_id=pl.lit("q"), candidate_id="q" + pl.col("candidate_id"))
    together = mixed_scores(pl.concat([rows, others]), weights)
    assert together.filter(prompt_id="p").sort("candidate_id").equals(before)
    scaled = rows.with_columns(score=pl.col("score") * factor)  # powers of two: exact
    assert mixed_scores(scaled, weights).sort("candidate_id").equals(before)


def test_pairs_by_a_mix_say_so():
    first, second = {"a": 1, "b": 0.9, "c": 0}, {"a": 0, "b": 10, "c": 1}
    config = PairingConfig(weights={"judge": 1, "rules": 1})
    asked = candidates_of({"p": first}), both(first, second)
    (row,) = pair(*asked, config).iter_rows(named=True)
    assert (row["chosen_candidate_id"], row["rejected_candidate_id"]) == ("b", "c")
    assert row["scorer"] == "mix:judge*0.5+rules*0.5"
    alone = pair(*asked, PairingConfig())
    assert alone["pair_id"].to_list() != [row["pair_id"]]


def test_a_scorer_of_a_mix_that_judged_nothing_is_told():
    asked = candidates_of({"p": {"a": 1}}), both({"a": 1}, {"a": 1})
    config = PairingConfig(weights={"rules": 1, "jugde": 1})
    with pytest.raises(DataError, match="no scores by 'jugde'; nearest known: judge"):
        explain_no_pairs(*asked, config)
