from itertools import combinations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.filter_settings import FilteringConfig
from stages.filtering import filter_pairs
from stages.length_bias import advantage, length_bias
from tests.stages.rows import candidates, pairs, shuffled


def gaps(*values):
    """Return pairs with these token gaps, chosen - rejected."""
    return pl.DataFrame(
        {
            "pair_id": [f"pair_{number:03}" for number in range(len(values))],
            "chosen_tokens": [100 + value for value in values],
            "rejected_tokens": [100] * len(values),
        },
        schema={"pair_id": pl.String, "chosen_tokens": pl.Int64, "rejected_tokens": pl.Int64},
    )


def strata_bias(values):
    """Return sum |longer - shorter| / pairs over strata, written down another way."""
    strata = {}
    for value in values:
        sign = (value > 0) - (value < 0)
        strata[abs(value).bit_length()] = strata.get(abs(value).bit_length(), 0) + sign
    return sum(map(abs, strata.values())) / len(values) if values else 0.0


def test_one_guesses_from_the_gap_what_the_majority_of_its_stratum_tells():
    # Gaps of 4 to 7: three longer, one shorter win; of 8 to 15: one each; one of none.
    bias = length_bias(gaps(4, 5, 7, -6, 8, -15, 0))

    assert bias.bias == pytest.approx(2 / 7)
    assert bias.longer_wins == pytest.approx(4 / 6)
    # Wilson 1927: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), n = 6, by hand.
    assert (bias.low, bias.high) == pytest.approx((0.2999, 0.9032), abs=1e-4)
    # 3 over sqrt(6 * (16 + 25 + 49 + 36 + 64 + 225)).
    assert bias.correlation == pytest.approx(3 / (6 * 415) ** 0.5)


def test_excess_pairs_have_the_bias_that_keeping_them_leaves():
    # The two that no shorter one matches, in the order of their ids: 1 of 5 + 1, then 2 of 5 + 2.
    values = advantage(gaps(4, 5, 7, -6, 8, -15, 0))

    assert values.to_list() == pytest.approx([0, 1 / 6, 2 / 7, 0, 0, 0, 0])


def test_dropped_pairs_do_not_count():
    facts = gaps(4, 5, 6, -4).with_columns(standing=pl.Series([False, True, True, True]))

    assert advantage(facts).to_list() == [None, 0, pytest.approx(1 / 3), 0]


def test_nothing_is_measured_where_no_length_differs():
    assert length_bias(gaps(0, 0)) == (None,) * 5
    assert length_bias(gaps()) == (None,) * 5


@given(st.lists(st.integers(-20, 20), max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_the_bias_comes_under_the_limit_and_no_pair_that_reduces_it_goes(values, limit, seed):
    proposed = gaps(*values)
    measured = proposed.with_columns(value=advantage(proposed))
    kept = measured.filter(pl.col("value") <= limit)
    left = (kept["chosen_tokens"] - kept["rejected_tokens"]).to_list()

    assert strata_bias(left) <= limit + 1e-12
    assert (kept["value"].max() or 0) == pytest.approx(strata_bias(left))
    for gap in set(values) - {0}:
        of_stratum = [v for v in values if abs(v).bit_length() == abs(gap).bit_length()]
        with_it = sum(v * gap > 0 for v in of_stratum)
        if 2 * with_it <= len(of_stratum):
            assert left.count(gap) == values.count(gap)
    again = shuffled(proposed, seed)
    again = again.with_columns(value=advantage(again)).sort("pair_id")
    assert again.equals(measured)


@given(st.lists(st.integers(-6, 6), max_size=8), st.floats(0, 1))
def test_no_fewer_drops_would_do(values, limit):
    dropped = (advantage(gaps(*values)) > limit).sum()

    fewer = (left for size in range(dropped) for left in combinations(values, len(values) - size))
    assert all(strata_bias(left) > limit for left in fewer)


def test_the_filter_counts_only_what_the_others_keep():
    # One shorter and three longer win by about as much; the cap takes the shorter one, c.
    lengths = {"a": 20, "b": 21, "c": 1, "d": 22}
    proposed = pairs(
        *(
            {
                "pair_id": f"pair_{name}",
                "prompt_id": "p",
                "chosen_candidate_id": name,
                "rejected_candidate_id": "z",
                "chosen_tokens": tokens,
                "rejected_tokens": 10,
                "margin": 0.2 if name == "c" else 0.5,
            }
            for name, tokens in lengths.items()
        )
    )
    answered = candidates(
        *({"candidate_id": name, "completion": f"text {name * 9}"} for name in (*lengths, "z"))
    )
    limits = {"maximum_length_ratio": None, "maximum_similarity": None}

    def kept(**more):
        found = filter_pairs(proposed, answered, FilteringConfig(**limits, **more))
        assert (
            found.decisions["position"].max()
            == found.decisions.filter(filter="length_bias")["position"].max()
        )
        return found.kept["pair_id"].to_list()

    # Three against one: 2 of 4. Without the last of the three by id: 1 of 3.
    assert kept(maximum_length_bias=0.5) == ["pair_a", "pair_b", "pair_c", "pair_d"]
    assert kept(maximum_length_bias=0.4) == ["pair_a", "pair_b", "pair_c"]
    assert kept(maximum_length_bias=0.0) == ["pair_a", "pair_c"]
    # Without c all tell the same: 1 of 1.
    assert kept(maximum_length_bias=0.4, maximum_pairs_per_prompt=3) == []
