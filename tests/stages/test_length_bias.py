from itertools import combinations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import ConfigError
from stages.filter_settings import FilteringConfig
from stages.filtering import filter_pairs, length_weights
from stages.length_bias import advantage, balancing_weights, length_bias
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


def strata_bias(values, weights=None):
    """Return sum |longer - shorter| / pairs over strata, written down another way."""
    strata, weights = {}, weights or [1] * len(values)
    for value, weight in zip(values, weights, strict=True):
        sign = ((value > 0) - (value < 0)) * weight
        strata[abs(value).bit_length()] = strata.get(abs(value).bit_length(), 0) + sign
    return sum(map(abs, strata.values())) / sum(weights) if values else 0.0


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


def test_weights_take_as_much_of_the_majority_as_the_limit_asks_for():
    # Gaps of 4 to 7: three longer, one shorter win; of 8 to 15: one each; one of none. Matching
    # weights are 1/3 of each of the three: surplus 2 of 7 pairs. At 0 they are all of it, scaled
    # by 7 / 5; at 1/6 half the surplus stays, (1/6 * 5) / (2 * 5/6), so 2/3, scaled by 7 / 6.
    proposed = gaps(4, 5, 7, -6, 8, -15, 0)

    assert balancing_weights(proposed, 0).to_list() == pytest.approx([7 / 15] * 3 + [7 / 5] * 4)
    assert balancing_weights(proposed, 1 / 6).to_list() == pytest.approx([7 / 9] * 3 + [7 / 6] * 4)
    assert balancing_weights(proposed, 2 / 7).to_list() == [1] * 7


def test_what_nothing_balances_has_no_weight_at_a_limit_of_0():
    # One pair alone in its stratum; the two others have a mean of 1.
    assert balancing_weights(gaps(2, 9, -9), 0).to_list() == pytest.approx([0, 1, 1])
    # The bias is what that pair has of all weights, which sum to 3.
    assert balancing_weights(gaps(2, 9, -9), 1 / 9).to_list() == pytest.approx(
        [1 / 3, 4 / 3, 4 / 3]
    )
    assert balancing_weights(gaps(2, 3, 9), 0.5).to_list() == [0, 0, 0]
    assert balancing_weights(gaps(), 0.5).to_list() == []


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_weights_bring_the_bias_under_the_limit_and_stay_within_bounds(values, limit):
    before = strata_bias(values)
    weights = balancing_weights(gaps(*values), limit).to_list()

    if before == 1:
        assert set(weights) == {0}, "no weights balance what has one side only"
        return
    assert strata_bias(values, weights) == pytest.approx(min(before, limit))
    assert sum(weights) == pytest.approx(len(values))
    if before > limit:
        assert limit / before - 1e-9 <= min(weights)
        assert max(weights) <= (1 - limit) / (1 - before) + 1e-9


def test_reweighting_keeps_pairs_that_dropping_does_not():
    proposed = pairs(
        *(
            {"pair_id": f"pair_{n}", "prompt_id": "p", "chosen_candidate_id": f"c{n}",
             "rejected_candidate_id": "z", "chosen_tokens": 10 + gap, "rejected_tokens": 10,
             "margin": margin}
            for n, (gap, margin) in enumerate([(4, 1.0), (5, 1.0), (-4, 1.0), (9, 1.0), (-7, 0.0)])
        )
    )  # fmt: skip
    texts = [{"candidate_id": f"c{n}", "completion": f"text {n}"} for n in range(5)]
    answered = candidates(*texts, {"candidate_id": "z", "completion": "another"})
    off = {"maximum_length_ratio": None, "maximum_similarity": None}
    config = FilteringConfig(**off, length_bias="reweight", maximum_length_bias=0.0)
    found = filter_pairs(proposed, answered, config)

    # Without pair_4, which the margin drops: two against one, and pair_3 alone.
    assert found.kept["pair_id"].to_list() == ["pair_0", "pair_1", "pair_2"]
    of_filter = found.decisions.filter(filter="length_weight")
    assert of_filter["value"].to_list() == pytest.approx([3 / 4, 3 / 4, 3 / 2, 0, None])
    assert of_filter["reason"].to_list() == [*[None] * 3, "nothing_balances_its_length", None]
    assert of_filter["position"].max() == found.decisions["position"].max()
    weights = length_weights(found.decisions).join(found.kept, on="pair_id", how="semi")
    assert weights.rows() == [("pair_0", 0.75), ("pair_1", 0.75), ("pair_2", 1.5)]


def test_reweighting_to_no_limit_is_refused():
    with pytest.raises(ConfigError, match="not read without maximum_length_bias"):
        FilteringConfig.checked({"length_bias": "reweight"})


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
