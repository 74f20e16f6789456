"""Filters: each rules on every pair, at exactly its limit, and says why it drops."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError
from stages.filtering import FilteringConfig, filter_pairs, kept_pairs, require_kept
from stages.tables import DECISIONS, PAIRS
from tests.stages.rows import candidates, pairs, shuffled

NAMES = ["identical", "empty", "truncated", "margin", "length_ratio", "near_identical"]
DEFAULT = FilteringConfig()
OFF = FilteringConfig(
    identical=False,
    empty=False,
    truncated=False,
    minimum_margin=None,
    maximum_length_ratio=None,
    maximum_similarity=None,
)


def built(*asked):
    """Return pairs and candidates for dicts of chosen, rejected, finish, margin and tokens."""
    of_pairs, of_candidates = [], []
    for i, one in enumerate(asked):
        tokens = one.get("tokens", (10, 10))
        ids = {"chosen": f"c{i}", "rejected": f"r{i}"}
        of_pairs.append(
            {
                "pair_id": f"pair_{i}",
                "prompt_id": f"prompt_{i}",
                "chosen_candidate_id": ids["chosen"],
                "rejected_candidate_id": ids["rejected"],
                "margin": one.get("margin", 1.0),
                "chosen_tokens": tokens[0],
                "rejected_tokens": tokens[1],
            }
        )
        of_candidates += [
            {
                "candidate_id": ids[role],
                "completion": one.get(role, f"{role} text"),
                "finish_reason": one.get(f"{role}_finish", "stop"),
            }
            for role in ids
        ]
    return pairs(*of_pairs), candidates(*of_candidates)


def ruled(config=DEFAULT, **one):
    """Return {filter: (kept, reason, value, limit)} for one pair."""
    decisions = filter_pairs(*built(one), config).decisions
    columns = ["filter", "kept", "reason", "value", "limit"]
    return {name: rest for name, *rest in decisions.select(columns).iter_rows()}


def dropped(**one):
    return {name: reason for name, (kept, reason, _, _) in ruled(**one).items() if not kept}


def test_a_good_pair_is_kept_by_all():
    assert ruled() == {
        "identical": [True, None, 0.0, None],
        "empty": [True, None, 0.0, None],
        "truncated": [True, None, 0.0, None],
        "margin": [True, None, 1.0, 0.1],
        "length_ratio": [True, None, 1.0, 3.0],
        # "chosen text" and "rejected text" have "ce text" in common: 2 * 7 / (11 + 13)
        "near_identical": [True, None, pytest.approx(7 / 12), 0.98],
    }


A, B = "a", "b"


@pytest.mark.parametrize(
    ("one", "reasons"),
    [
        ({"chosen": "same", "rejected": "same"}, {"identical": "chosen_equals_rejected"}),
        ({"chosen": "same", "rejected": " same\n"}, {"identical": "chosen_equals_rejected"}),
        ({"chosen": "same", "rejected": "Same"}, {}),
        ({"rejected": ""}, {"empty": "completion_empty"}),
        ({"chosen": " \n\t\u2003"}, {"empty": "completion_empty"}),
        ({"rejected": "."}, {}),
        ({"chosen_finish": "length"}, {"truncated": "completion_truncated"}),
        ({"rejected_finish": "length"}, {"truncated": "completion_truncated"}),
        ({"rejected_finish": "error"}, {"truncated": "completion_truncated"}),
        # minimum_margin 0.1: at, just above, just below
        ({"margin": 0.1}, {}),
        ({"margin": 0.100001}, {}),
        ({"margin": 0.099999}, {"margin": "margin_below_minimum"}),
        ({"margin": 0.9 - 0.8}, {}),  # 0.09999999999999998
        ({"margin": 0.0}, {"margin": "margin_below_minimum"}),
        # maximum_length_ratio 3, either way round
        ({"tokens": (30, 10)}, {}),
        ({"tokens": (29, 10)}, {}),
        ({"tokens": (31, 10)}, {"length_ratio": "length_ratio_above_maximum"}),
        ({"tokens": (10, 31)}, {"length_ratio": "length_ratio_above_maximum"}),
        ({"tokens": (3, 0)}, {}),
        ({"tokens": (4, 0)}, {"length_ratio": "length_ratio_above_maximum"}),
        ({"tokens": (0, 0)}, {}),
        # maximum_similarity 0.98: one letter of n replaced is 1 - 2 / (2 n)
        ({"chosen": A * 50, "rejected": A * 49 + B}, {}),
        ({"chosen": A * 49, "rejected": A * 48 + B}, {}),
        (
            {"chosen": A * 51, "rejected": A * 50 + B},
            {"near_identical": "similarity_above_maximum"},
        ),
    ],
)
def test_a_filter_drops_beyond_its_limit_and_says_why(one, reasons):
    found = dropped(**one)
    if "identical" in reasons:
        found.pop("near_identical", None)
    assert found == reasons


def test_what_was_measured_is_recorded_with_the_limit():
    one = {"margin": 0.05, "tokens": (10, 35), "chosen": "abcd", "rejected": "abce"}
    rulings = ruled(**one)
    assert rulings["margin"] == [False, "margin_below_minimum", 0.05, 0.1]
    assert rulings["length_ratio"] == [False, "length_ratio_above_maximum", 3.5, 3.0]
    assert rulings["near_identical"] == [True, None, 0.75, 0.98]  # 1 - 2 / 8


def test_a_margin_that_rounding_put_below_its_limit_reaches_it():
    config = FilteringConfig(minimum_margin=0.2)
    margin = 1.0 - 0.8
    assert margin < 0.2
    assert ruled(config, margin=margin)["margin"] == [True, None, margin, 0.2]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"identical": False}, "identical"),
        ({"empty": False}, "empty"),
        ({"truncated": False}, "truncated"),
        ({"minimum_margin": None}, "margin"),
        ({"maximum_length_ratio": None}, "length_ratio"),
        ({"maximum_similarity": None}, "near_identical"),
    ],
)
def test_a_filter_that_is_switched_off_leaves_no_ruling(change, name):
    worst = {"chosen": "", "rejected": "", "chosen_finish": "length", "margin": 0, "tokens": (9, 1)}
    everything = ruled(**worst)
    assert not any(kept for kept, *_ in everything.values())
    assert list(everything) == NAMES
    fewer = ruled(FilteringConfig(**change), **worst)
    assert list(fewer) == [other for other in NAMES if other != name]


def test_a_limit_of_zero_is_a_limit():
    assert "margin" in ruled(FilteringConfig(minimum_margin=0.0))


def test_with_every_filter_off_all_are_kept_without_a_ruling():
    of_pairs, of_candidates = built({"chosen": "", "rejected": ""}, {})
    kept, decisions = filter_pairs(of_pairs, of_candidates, OFF)
    assert kept.equals(of_pairs)
    assert DECISIONS.to_arrow(decisions).num_rows == 0
    require_kept(of_pairs, decisions)


defects = st.fixed_dictionaries(
    {
        "chosen": st.sampled_from(["", "same", "text", "a longer text"]),
        "rejected": st.sampled_from(["", "same", "other", "a longer tent"]),
        "margin": st.sampled_from([0.05, 0.1, 0.5]),
        "tokens": st.tuples(st.integers(0, 9), st.integers(0, 9)),
        "chosen_finish": st.sampled_from(["stop", "length"]),
    }
)


@settings(max_examples=40)
@given(st.lists(defects, max_size=8), st.integers(0, 3))
def test_every_filter_rules_on_every_pair_and_kept_is_what_none_drops(asked, seed):
    of_pairs, of_candidates = built(*asked)
    kept, decisions = filter_pairs(of_pairs, of_candidates, FilteringConfig())
    PAIRS.to_arrow(kept)
    DECISIONS.to_arrow(decisions)
    keys = {(p, name) for p in of_pairs["pair_id"] for name in NAMES}
    assert set(decisions.select("pair_id", "filter").iter_rows()) == keys
    assert decisions.height == len(keys)
    assert decisions["kept"].to_list() == decisions["reason"].is_null().to_list()
    bad = set(decisions.filter(~pl.col("kept"))["pair_id"])
    assert set(kept["pair_id"]) == set(of_pairs["pair_id"]) - bad
    alone = [filter_pairs(*built(one), FilteringConfig()).kept.height for one in asked]
    assert sum(alone) == kept.height, "no pair's ruling depends on the others"
    again = filter_pairs(
        shuffled(of_pairs, seed), shuffled(of_candidates, seed + 1), FilteringConfig()
    )
    assert again.kept.equals(kept)
    assert again.decisions.equals(decisions)
    assert kept_pairs(shuffled(of_pairs, seed), shuffled(decisions, seed)).equals(kept)


def test_positions_are_the_order_of_the_filters():
    decisions = filter_pairs(*built({}), FilteringConfig(truncated=False)).decisions
    expected = [name for name in NAMES if name != "truncated"]
    assert list(decisions.select("position", "filter").iter_rows()) == list(enumerate(expected))


def test_no_pairs_give_no_rulings():
    kept, decisions = filter_pairs(*built(), FilteringConfig())
    assert PAIRS.to_arrow(kept).num_rows == DECISIONS.to_arrow(decisions).num_rows == 0


def test_when_nothing_is_left_the_filters_are_named_with_counts():
    of_pairs, of_candidates = built(
        {"margin": 0.05},
        {"margin": 0.05, "rejected_finish": "length"},
        {"margin": 0.05, "rejected": ""},
        {"tokens": (40, 10)},
    )
    decisions = filter_pairs(of_pairs, of_candidates, FilteringConfig()).decisions
    for seed in range(5):
        with pytest.raises(DataError) as caught:
            require_kept(of_pairs, shuffled(decisions, seed))
        # Most first, then by name
        assert caught.value.found == (
            "nothing is left of 4 pairs: margin dropped 3 (limit 0.1), empty dropped 1, "
            "length_ratio dropped 1 (limit 3), truncated dropped 1"
        )


def test_one_kept_pair_is_enough():
    of_pairs, of_candidates = built({"margin": 0.05}, {})
    kept, decisions = filter_pairs(of_pairs, of_candidates, FilteringConfig())
    require_kept(of_pairs, decisions)
    assert kept["pair_id"].to_list() == ["pair_1"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "similarity"),
    [
        ("Zoë 🐕", "Zoë 🐈", 1 - 2 / 10),  # five characters each, whatever their bytes
        ("a\nb\r\nc", "a\nb\nc", 1 - 1 / 11),
        ("a" * 100_000, "b" * 100_000, 0.0),
        ("a" * 100_000, "a" * 99_999, 1 - 1 / 199_999),
        ("ab" * 50_000, "ba" * 50_000, 1 - 2 / 200_000),
        ("a\u0000b", "a\u0000b", 1.0),
    ],
    ids=["emoji", "newlines", "100 KB apart", "100 KB cut", "100 KB turned", "nul"],
)
def test_similarity_counts_characters_of_any_text(chosen, rejected, similarity):
    rulings = ruled(chosen=chosen, rejected=rejected)
    assert rulings["near_identical"][2] == pytest.approx(similarity, abs=1e-12)
    assert rulings["identical"][0] == (chosen != rejected)


def test_a_pair_whose_candidate_is_gone_is_an_error_and_not_kept():
    of_pairs, of_candidates = built({}, {})
    with pytest.raises(DataError, match=r"1 pairs name candidates that are not there.*pair_1"):
        filter_pairs(of_pairs, of_candidates.filter(pl.col("candidate_id") != "r1"), DEFAULT)
