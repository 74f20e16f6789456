"""Filters: each rules on every pair, at exactly its limit, and says why it drops."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import ConfigError, DataError
from stages.filter_settings import FilteringConfig
from stages.filtering import (
    filter_pairs,
    kept_pairs,
    kept_signatures,
    measure,
    require_kept,
    rule,
)
from stages.tables import DECISIONS, PAIRS
from tests.stages.rows import candidates, pairs, prompts, scores, shuffled

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
    require_kept(of_pairs.height, decisions.lazy())


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
            require_kept(of_pairs.height, shuffled(decisions, seed).lazy())
        # Most first, then by name
        assert caught.value.found == (
            "nothing is left of 4 pairs: margin dropped 3 (limit 0.1), empty dropped 1, "
            "length_ratio dropped 1 (limit 3), truncated dropped 1"
        )


def test_one_kept_pair_is_enough():
    of_pairs, of_candidates = built({"margin": 0.05}, {})
    kept, decisions = filter_pairs(of_pairs, of_candidates, FilteringConfig())
    require_kept(of_pairs.height, decisions.lazy())
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


def test_filters_that_nobody_asked_for_are_off():
    by_default = filter_pairs(*built({}), FilteringConfig()).decisions
    assert by_default["filter"].to_list() == NAMES
    assert DEFAULT.prompt_columns == []
    assert not DEFAULT.needs_scores


def only(**asked):
    """Return a configuration with no other filter than those asked for."""
    return FilteringConfig(**(OFF.model_dump() | asked))


REFUSAL, ANSWER = "I'm sorry, but I cannot help.", "The sum is 17."


@pytest.mark.parametrize(
    ("config", "one", "expected"),
    [
        # maximum_length_gap_tokens: at and above, either way round
        ({"maximum_length_gap_tokens": 20}, {"tokens": (30, 10)}, [True, None, 20, 20]),
        (
            {"maximum_length_gap_tokens": 20},
            {"tokens": (10, 31)},
            [False, "length_gap_above_maximum", 21, 20],
        ),
        ({"maximum_length_gap_tokens": 0}, {"tokens": (9, 9)}, [True, None, 0, 0]),
        # refusal
        (
            {"refusal": "chosen"},
            {"chosen": REFUSAL, "rejected": ANSWER},
            [False, "refusal_in_chosen", 1, None],
        ),
        ({"refusal": "chosen"}, {"chosen": ANSWER, "rejected": REFUSAL}, [True, None, 0, None]),
        ({"refusal": "both"}, {"chosen": REFUSAL, "rejected": ANSWER}, [True, None, 0, None]),
        ({"refusal": "both"}, {"chosen": ANSWER, "rejected": REFUSAL}, [True, None, 0, None]),
        (
            {"refusal": "both"},
            {"chosen": REFUSAL, "rejected": REFUSAL},
            [False, "refusal_in_both", 1, None],
        ),
        # maximum_repetition: of 5 4-grams one repeats; only the chosen counts
        ({"maximum_repetition": 0.2}, {"chosen": "a b c d a b c d"}, [True, None, 0.2, 0.2]),
        (
            {"maximum_repetition": 0.19},
            {"chosen": "a b c d a b c d"},
            [False, "repetition_above_maximum", 0.2, 0.19],
        ),
        ({"maximum_repetition": 0.0}, {"rejected": "a a a a a a"}, [True, None, None, 0]),
        ({"maximum_repetition": 0.0}, {"chosen": ""}, [True, None, None, 0]),
    ],
)
def test_a_filter_measures_and_rules_by_hand(config, one, expected):
    (found,) = ruled(only(**config), **one).values()
    assert found == expected


def scored_pair(name, chosen, rejected, **more):
    ids = {"chosen_candidate_id": f"{name}_c", "rejected_candidate_id": f"{name}_r"}
    of_pair = {"chosen_score": chosen, "rejected_score": rejected, "margin": chosen - rejected}
    return {"pair_id": name, "prompt_id": name, **ids, **of_pair, **more}


def answers_of(of_pairs):
    ids = {*of_pairs["chosen_candidate_id"], *of_pairs["rejected_candidate_id"]}
    return candidates(*({"candidate_id": one, "completion": one} for one in sorted(ids)))


def values(of_pairs, config, **more):
    """Return {pair id: (kept, reason, value)} of the one filter in ``config``."""
    decisions = filter_pairs(of_pairs, answers_of(of_pairs), config, **more).decisions
    columns = ["pair_id", "kept", "reason", "value"]
    return {pair: tuple(rest) for pair, *rest in decisions.select(columns).iter_rows()}


def test_a_margin_is_normalised_by_the_spread_of_its_scorers_scores():
    of_pairs = pairs(
        # reward: 8, 0, 6, 2 have mean 4 and population standard deviation sqrt(40 / 4)
        scored_pair("a", 8.0, 0.0, scorer="reward"),
        scored_pair("b", 6.0, 2.0, scorer="reward"),
        # rules: 1, 0 have 0.5
        scored_pair("c", 1.0, 0.0, scorer="rules"),
        # constant
        scored_pair("d", 3.0, 3.0, scorer="flat"),
    )
    found = values(of_pairs, only(minimum_normalised_margin=2.0))
    below = "normalised_margin_below_minimum"
    assert found == {
        "a": (True, None, pytest.approx(8 / 10**0.5)),
        "b": (False, below, pytest.approx(4 / 10**0.5)),
        "c": (True, None, 2.0),
        "d": (True, None, None),
    }


def test_a_candidate_of_two_pairs_counts_once_for_the_spread():
    shared = {"chosen_candidate_id": "best"}
    of_pairs = pairs(
        scored_pair("a", 2.0, 1.0) | shared,
        scored_pair("b", 2.0, 0.0) | shared,
    )
    # 2, 1, 0: variance 2 / 3
    found = values(of_pairs, only(minimum_normalised_margin=0.0))
    assert found["a"][2] == pytest.approx(1.5**0.5)


def test_reference_and_edited_answers_do_not_make_a_prompt_easier():
    of_scores = scores({"hard": {"s1": 0.0, "s2": 0.0, "given": 1.0, "better": 1.0}})
    of_pairs = pairs(scored_pair("hard", 1.0, 0.0, scorer="rules"))
    kinds = {"hard_c": "w0", "hard_r": "w0", "s1": "w0", "given": "reference", "better": "edited"}
    answers = candidates(
        *(
            {"candidate_id": one, "completion": one, "weights_hash": kind}
            for one, kind in kinds.items()
        )
    )
    config = only(minimum_prompt_success=0.1)
    (decided,) = filter_pairs(of_pairs, answers, config, scores=of_scores).decisions.to_dicts()
    assert (decided["kept"], decided["value"]) == (False, 0.0)


def test_prompts_that_are_too_hard_or_too_easy_are_dropped():
    by_prompt = {
        "hard": {"h1": 1.0, "h2": 0.0, "h3": 0.0, "h4": 0.0},
        "fair": {"f1": 1.0, "f2": 0.5, "f3": None},
        "easy": {"e1": 1.0, "e2": 1.0 - 1e-12, "e3": 1.0, "e4": 0.0},
    }
    of_scores = pl.concat([scores(by_prompt), scores({"hard": {"h2": 1.0}}, scorer="other")])
    of_pairs = pairs(*(scored_pair(name, 1.0, 0.0, scorer="rules") for name in [*by_prompt, "new"]))
    low = values(of_pairs, only(minimum_prompt_success=0.5), scores=of_scores)
    assert low == {
        "hard": (False, "prompt_success_below_minimum", 0.25),
        "fair": (True, None, 0.5),
        "easy": (True, None, 0.75),
        "new": (True, None, None),
    }
    high = values(of_pairs, only(maximum_prompt_success=0.5), scores=of_scores)
    assert high["easy"] == (False, "prompt_success_above_maximum", 0.75)
    assert all(high[name][0] for name in ("hard", "fair", "new"))
    lenient = only(maximum_prompt_success=0.5, success_score=0.5)
    assert values(of_pairs, lenient, scores=of_scores)["fair"] == (
        False,
        "prompt_success_above_maximum",
        1.0,
    )


def test_a_cap_keeps_the_widest_of_each_prompt_then_of_each_source_and_split():
    def of(name, margin, prompt):
        return scored_pair(name, margin, 0.0) | {"prompt_id": prompt}

    of_pairs = pairs(
        *[of("a", 0.9, "p"), of("b", 0.8, "p"), of("c", 0.8, "p")],
        *[of("d", 0.7, "q"), of("e", 0.05, "q")],
        *[of("f", 0.1, "other"), of("g", 0.1, "held")],
    )
    of_prompts = prompts(
        {"prompt_id": "p", "source": "s"},
        {"prompt_id": "q", "source": "s"},
        {"prompt_id": "other", "source": "t"},
        {"prompt_id": "held", "source": "s", "split": "heldout"},
    )
    config = only(minimum_margin=0.1, maximum_pairs_per_prompt=2, maximum_pairs_per_source=2)
    kept, decisions = filter_pairs(of_pairs, answers_of(of_pairs), config, of_prompts)
    assert kept["pair_id"].to_list() == ["a", "b", "f", "g"]
    columns = ["pair_id", "reason", "value"]

    def places(name):
        rows = decisions.filter(filter=name).select(columns).iter_rows()
        return {pair: tuple(rest) for pair, *rest in rows}

    first = (None, 1.0)
    assert places("pairs_per_prompt") == {
        "a": first,
        "b": (None, 2.0),
        "c": ("per_prompt_cap", 3.0),  # as wide as b, whose id comes first
        "d": first,
        "e": (None, 2.0),
        "f": first,
        "g": first,
    }
    assert places("pairs_per_source") == {
        "a": first,
        "b": (None, 2.0),
        "c": ("per_source_cap", 3.0),  # where it would come: it takes no place
        "d": ("per_source_cap", 3.0),
        "e": ("per_source_cap", 4.0),  # dropped by its margin as well
        "f": first,
        "g": first,
    }


EVERYTHING = {
    "minimum_normalised_margin": 0.4,
    "maximum_length_gap_tokens": 6,
    "minimum_prompt_success": 0.2,
    "maximum_prompt_success": 0.8,
    "refusal": "chosen",
    "maximum_repetition": 0.3,
    "maximum_pairs_per_prompt": 1,
    "maximum_pairs_per_source": 2,
}


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3),  # prompt
            st.sampled_from([0.1, 0.3, 1.0]),
            st.sampled_from([REFUSAL, "no " * 9, ANSWER]),
            st.integers(1, 9),
        ),
        max_size=9,
    ),
    seed=st.integers(0, 99),
)
def test_with_every_filter_row_order_changes_nothing_and_caps_hold(rows, seed):
    of_pairs = pairs(
        *(
            scored_pair(f"{i}", margin, 0.0, chosen_tokens=tokens) | {"prompt_id": f"p{prompt}"}
            for i, (prompt, margin, _, tokens) in enumerate(rows)
        )
    )
    texts = {f"{i}_c": text for i, (_, _, text, _) in enumerate(rows)}
    texts |= {f"{i}_r": "other" for i in range(len(rows))}
    of_candidates = candidates(
        *({"candidate_id": one, "completion": text} for one, text in texts.items())
    )
    of_prompts = prompts(*({"prompt_id": f"p{i}", "source": f"s{i % 2}"} for i in range(4)))
    of_scores = scores(
        {f"p{i}": {f"x{i}{j}": float(j < i) for j in range(3)} for i in range(4)}, "x"
    )
    tables = (of_pairs, of_candidates, FilteringConfig(**EVERYTHING), of_prompts, of_scores)
    kept, decisions = filter_pairs(*tables)
    assert decisions.height == len(rows) * (len(NAMES) + len(EVERYTHING))
    mixed = [t if isinstance(t, FilteringConfig) else shuffled(t, seed) for t in tables]
    again = filter_pairs(*mixed)
    assert again.kept.equals(kept)
    assert again.decisions.equals(decisions)
    sources = kept.join(of_prompts, on="prompt_id")["source"]
    assert kept["prompt_id"].n_unique() == kept.height
    assert max(sources.value_counts()["count"], default=0) <= 2
    without_caps = {k: v for k, v in EVERYTHING.items() if "pairs_per" not in k}
    open_to_all = filter_pairs(
        of_pairs, of_candidates, FilteringConfig(**without_caps), None, of_scores
    )
    widest = open_to_all.kept.group_by("prompt_id").agg(widest=pl.col("margin").max())
    assert (
        (kept.join(widest, on="prompt_id").select(pl.col("margin") == pl.col("widest")))
        .to_series()
        .all()
    )


def test_what_a_filter_needs_and_is_not_given_is_an_error():
    with pytest.raises(DataError, match=r"no prompts are given.*cap pairs per source"):
        filter_pairs(*built({}), only(maximum_pairs_per_source=1))
    with pytest.raises(DataError, match=r"1 pairs name prompts.*pair_0"):
        filter_pairs(*built({}), only(maximum_pairs_per_source=1), prompts())
    with pytest.raises(DataError, match="no scores are given"):
        filter_pairs(*built({}), only(minimum_prompt_success=0.1))


def test_a_language_is_one_code_or_several():
    assert FilteringConfig(language="en").language == ("en",)
    assert FilteringConfig(language=["en", "de"]).language == ("en", "de")
    for wrong in ("English", "EN", [], False):
        with pytest.raises(ConfigError, match="language"):
            FilteringConfig.checked({"language": wrong})


def test_a_chosen_in_another_language_is_dropped():
    pytest.importorskip("py3langid")
    german = "Der Hund läuft schnell durch den Wald und bellt."
    kept, reason, value, limit = ruled(only(language=["en"]), chosen=german)["language"]
    assert (kept, reason, limit) == (False, "language_not_asked_for", 0.5)
    assert 0.9 < value <= 1
    assert ruled(only(language=["en", "de"]), chosen=german)["language"] == [True, None, 0, 0.5]
    assert ruled(only(language=["en"]), rejected=german)["language"][0]


def test_an_empty_difficulty_band_is_refused():
    with pytest.raises(ConfigError, match="minimum_prompt_success is above maximum_prompt_success"):
        FilteringConfig.checked({"minimum_prompt_success": 0.6, "maximum_prompt_success": 0.5})


WORDS = " ".join(f"word{i}" for i in range(60))
ALIKE = {"near_duplicates": {"similarity": 0.8}}


def alike(*asked):
    """Return pairs, candidates and prompts; prompts and rejected texts are the same."""
    of_pairs, of_candidates = built(*({"rejected": "short", **one} for one in asked))
    of_prompts = prompts(*({"prompt_id": f"prompt_{i}"} for i in range(len(asked))))
    return of_pairs, of_candidates, of_prompts


def test_of_pairs_nearly_alike_the_widest_margin_stays():
    of_pairs, of_candidates, of_prompts = alike(
        {"chosen": WORDS, "margin": 1.0},
        {"chosen": f"{WORDS} more", "margin": 2.0},
        {"chosen": "something else altogether " * 9, "margin": 1.0},
    )
    decisions = filter_pairs(of_pairs, of_candidates, only(**ALIKE), of_prompts).decisions
    assert decisions.select("pair_id", "kept", "reason", "value").rows() == [
        ("pair_0", False, "near_duplicate_of_a_pair", 1.0),
        ("pair_1", True, None, 0.0),
        ("pair_2", True, None, 0.0),
    ]


def test_a_pair_that_another_filter_drops_takes_no_place():
    of_pairs, of_candidates, of_prompts = alike(
        {"chosen": WORDS, "margin": 1.0},
        {"chosen": f"{WORDS} more", "margin": 2.0, "chosen_finish": "length"},
    )
    config = only(truncated=True, **ALIKE)
    decisions = filter_pairs(of_pairs, of_candidates, config, of_prompts).decisions
    duplicates = decisions.filter(filter="near_duplicate")
    assert duplicates.select("pair_id", "kept", "value").rows() == [
        ("pair_0", True, 0.0),
        ("pair_1", True, None),
    ]


def test_a_pair_nearly_alike_one_that_an_earlier_run_kept_is_dropped():
    config = only(**ALIKE)
    first = alike({"chosen": WORDS, "margin": 1.0})
    kept = kept_signatures(rule(measure(first[0], first[1], config, first[2]), config))
    later = alike({"chosen": "x"}, {"chosen": f"{WORDS} more", "margin": 9.0})
    facts = measure(later[0], later[1], config, later[2])
    assert rule(facts, config)["standing"].to_list() == [True, True]
    # Under another id than the earlier pair's, as another text has.
    earlier = kept.with_columns(pair_id=pl.lit("pair_before"))
    assert rule(facts, config, earlier)["standing"].to_list() == [True, False]


def test_the_same_pair_in_a_later_run_is_no_duplicate_of_itself():
    config = only(**ALIKE)
    of_pairs, of_candidates, of_prompts = alike({"chosen": WORDS})
    facts = measure(of_pairs, of_candidates, config, of_prompts)
    kept = kept_signatures(rule(facts, config))
    assert rule(facts, config, kept)["standing"].to_list() == [True]
