"""Pairing: labels follow the scores and nothing else."""

import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import ConfigError, DataError
from stages.no_pairs import explain_no_pairs
from stages.pairing import PairingConfig, pair
from stages.tables import PAIRS
from tests.stages.rows import candidates, candidates_of, scores, shuffled

BEST_OVER_ONE = (
    "best_vs_worst",
    "best_vs_random",
    "best_vs_quantile",
    "best_vs_mean_minus_2_sigma",
)
WIDEST = ("max_margin_k", "all_pairs_above_margin")
EACH_BEST_OVER_ONE = pytest.mark.parametrize("strategy", BEST_OVER_ONE)
EACH = pytest.mark.parametrize("strategy", BEST_OVER_ONE + WIDEST)


def paired(by_prompt, strategy="best_vs_worst", seed=0, **parameters):
    config = PairingConfig(strategy=strategy, seed=seed, **parameters)
    return pair(candidates_of(by_prompt), scores(by_prompt), config)


def labels(pairs):
    """Return {prompt: (chosen, rejected)}."""
    columns = ["prompt_id", "chosen_candidate_id", "rejected_candidate_id"]
    return {p: (chosen, rejected) for p, chosen, rejected in pairs.select(columns).iter_rows()}


def ordered(pairs):
    """Return all (chosen, rejected), written as one word each."""
    columns = ["chosen_candidate_id", "rejected_candidate_id"]
    return sorted(chosen + rejected for chosen, rejected in pairs.select(columns).iter_rows())


# --- tables by hand


def test_best_vs_worst_by_hand():
    by_prompt = {
        "p1": {"a": 0.2, "b": 0.9, "c": 0.5},
        "p2": {"d": -1.0, "e": -3.0},
        "p3": {"f": 0.7, "g": 0.7},
        "p4": {"h": 1.0},
        "p5": {"i": 1.0, "j": None},
    }
    pairs = paired(by_prompt)
    assert labels(pairs) == {"p1": ("b", "a"), "p2": ("d", "e")}
    row = pairs.row(by_predicate=pl.col("prompt_id") == "p1", named=True)
    assert (row["chosen_score"], row["rejected_score"]) == (0.9, 0.2)
    assert row["margin"] == pytest.approx(0.7)
    assert (row["strategy"], row["scorer"]) == ("best_vs_worst", "rules")
    PAIRS.to_arrow(pairs)


def test_best_vs_random_takes_each_one_below_the_best_about_equally_often():
    by_prompt = {
        f"p{i}": {f"{i}{c}": s for c, s in zip("abcde", (1, 1, 0.5, 0, 0), strict=True)}
        for i in range(900)
    }
    pairs = labels(paired(by_prompt, "best_vs_random"))
    assert len(pairs) == 900
    chosen = [c[-1] for c, _ in pairs.values()]
    rejected = [r[-1] for _, r in pairs.values()]
    assert set(chosen) == {"a", "b"}
    assert set(rejected) == {"c", "d", "e"}
    # 4 standard deviations: sqrt(900 * 1/3 * 2/3) = 14.1 and sqrt(900 / 4) = 15
    for name in "cde":
        assert abs(rejected.count(name) - 300) < 57
    assert abs(chosen.count("a") - 450) < 60


@pytest.mark.parametrize(
    ("quantile", "rejected"),
    # Linearly between neighbours: 0.25 of the way is the second, 1; 0.4 is 1.6, 1.0 is the best's.
    [(0.0, "a"), (0.25, "b"), (0.4, "c"), (0.5, "c"), (1.0, "d")],
)
def test_best_vs_quantile_by_hand(quantile, rejected):
    by_prompt = {"p1": {"e": 10, "c": 2, "a": 0, "d": 3, "b": 1}, "p2": {"f": 1, "g": 1}}
    pairs = paired(by_prompt, "best_vs_quantile", quantile=quantile)
    assert labels(pairs) == {"p1": ("e", rejected)}


@pytest.mark.parametrize(
    ("sigmas", "rejected"),
    # The mean is 0, the squares sum to 100 + 25 + 15 = 140: sigma is (140 / 20) ** 0.5 = 2.646.
    # 2.8 sigma is -7.41; with 19 in the place of 20 it were -7.60, nearer to -10.
    [(4.0, -10), (2.8, -5), (2.0, -5), (0.5, 0)],
)
def test_best_vs_mean_minus_2_sigma_by_hand(sigmas, rejected):
    values = [-10, -5, *[0] * 3, *[1] * 15]
    by_prompt = {"p1": {f"c{i}": v for i, v in enumerate(values)}, "p2": {"f": 1, "g": 1}}
    (row,) = paired(by_prompt, "best_vs_mean_minus_2_sigma", sigmas=sigmas).iter_rows(named=True)
    assert (row["chosen_score"], row["rejected_score"]) == (1, rejected)


@pytest.mark.parametrize(
    ("most", "expected"),
    # Margins: ad 10, bd 7, cd 6, ac 4, ab 3, bc 1.
    [
        (1, ["ad", "ef"]),
        (3, ["ad", "bd", "cd", "ef"]),
        (5, ["ab", "ac", "ad", "bd", "cd", "ef"]),
        (9, ["ab", "ac", "ad", "bc", "bd", "cd", "ef"]),
    ],
)
def test_max_margin_k_by_hand(most, expected):
    by_prompt = {
        "p1": {"a": 10, "b": 7, "c": 6, "d": 0},
        "p2": {"e": 1, "f": 0.5, "x": None},
        "p3": {"g": 1, "h": 1},
        "p4": {"i": 1},
    }
    pairs = paired(by_prompt, "max_margin_k", maximum_pairs_per_prompt=most)
    assert ordered(pairs) == expected
    PAIRS.to_arrow(pairs)


@pytest.mark.parametrize(
    ("margin", "most", "expected"),
    [
        (0.0, 6, ["ab", "ac", "ad", "bc", "bd", "cd", "ef"]),
        (4.0, 6, ["ac", "ad", "bd", "cd"]),
        (4.0, 2, ["ad", "bd"]),
        (10.5, 6, []),
    ],
)
def test_all_pairs_above_margin_by_hand(margin, most, expected):
    by_prompt = {"p1": {"a": 10, "b": 7, "c": 6, "d": 0}, "p2": {"e": 1, "f": 0.5}}
    limits = {"minimum_margin": margin, "maximum_pairs_per_prompt": most}
    assert ordered(paired(by_prompt, "all_pairs_above_margin", **limits)) == expected


def test_a_margin_short_of_the_minimum_by_rounding_alone_reaches_it():
    assert 0.9 - 0.8 < 0.1
    by_prompt = {"p1": {"a": 0.9, "b": 0.8}}
    pairs = paired(by_prompt, "all_pairs_above_margin", minimum_margin=0.1)
    assert ordered(pairs) == ["ab"]


def test_equally_wide_pairs_are_not_all_of_one_candidate():
    by_prompt = {"p1": {"a": 1, "b": 1, "c": 0, "d": 0, "e": 0}}
    for seed in range(5):
        pairs = paired(by_prompt, "max_margin_k", seed, maximum_pairs_per_prompt=3)
        # By places from the top and the bottom: (1, 1), (1, 2) and (2, 1), not (1, 3).
        assert len(pairs) == 3
        assert set(pairs["chosen_candidate_id"]) == {"a", "b"}
        assert pairs["rejected_candidate_id"].n_unique() == 2


def test_the_seed_decides_between_the_two_beside_a_median():
    by_prompt = {"p1": {"a": 0, "b": 1, "c": 2, "d": 3}}
    pairs = [paired(by_prompt, "best_vs_quantile", seed, quantile=0.5) for seed in range(20)]
    assert {label for found in pairs for label in ordered(found)} == {"db", "dc"}


def test_rounding_in_a_sum_does_not_depend_on_the_row_order():
    """The mean, 2.4, lies between c and d: the last bit of its sum says which is nearer."""
    values = {"a": 0.7, "b": 1.1, "c": 1.3, "d": 3.5, "e": 5.4}
    found = [
        paired({"p1": {c: values[c] for c in order}}, "best_vs_mean_minus_2_sigma", sigmas=0)
        for order in ("abcde", "adbec")  # summed as they come, the second gives another bit
    ]
    assert found[0].equals(found[1])


@EACH_BEST_OVER_ONE
def test_the_seed_decides_among_equals_only(strategy):
    by_prompt = {
        f"p{i}": {f"{i}{c}": s for c, s in zip("abcd", (1, 1, 0, 0), strict=True)}
        for i in range(50)
    }
    one, same, other = (labels(paired(by_prompt, strategy, seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    distinct = {f"p{i}": {f"{i}a": 1, f"{i}b": 0} for i in range(50)}
    assert labels(paired(distinct, strategy, 1)) == labels(paired(distinct, strategy, 2))


@EACH_BEST_OVER_ONE
def test_length_has_no_say_among_equals(strategy):
    by_prompt = {"p1": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}}
    lengths = [{"a": 1, "b": 9, "c": 1, "d": 9}, {"a": 9, "b": 1, "c": 9, "d": 1}]
    found = []
    for of_lengths in lengths:
        rows = [{"candidate_id": c, "completion_tokens": n} for c, n in of_lengths.items()]
        pairs = pair(candidates(*rows), scores(by_prompt), PairingConfig(strategy=strategy))
        (row,) = pairs.iter_rows(named=True)
        assert row["chosen_tokens"] == of_lengths[row["chosen_candidate_id"]]
        assert row["rejected_tokens"] == of_lengths[row["rejected_candidate_id"]]
        found.append(labels(pairs))
    assert found[0] == found[1]


# --- invariants

value = st.one_of(
    st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]),
    st.floats(-1e6, 1e6),
    st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
score_lists = st.lists(st.lists(value, min_size=1, max_size=6), min_size=1, max_size=5)
strategies = st.sampled_from(BEST_OVER_ONE)
configs = st.one_of(
    st.builds(PairingConfig, strategy=strategies, seed=st.integers(0, 3)),
    st.builds(PairingConfig, strategy=st.just("best_vs_quantile"), quantile=st.floats(0, 1)),
    st.builds(
        PairingConfig, strategy=st.just("best_vs_mean_minus_2_sigma"), sigmas=st.floats(0, 4)
    ),
    st.builds(
        PairingConfig,
        strategy=st.just("max_margin_k"),
        maximum_pairs_per_prompt=st.integers(1, 20),
        seed=st.integers(0, 3),
    ),
    st.builds(
        PairingConfig,
        strategy=st.just("all_pairs_above_margin"),
        maximum_pairs_per_prompt=st.integers(1, 20),
        minimum_margin=st.sampled_from([0.0, 0.25, 1.0]),
    ),
)


def named(lists):
    """Return {prompt: {candidate: score}} for lists of scores."""
    return {f"p{i}": {f"c{i}_{j}": v for j, v in enumerate(vs)} for i, vs in enumerate(lists)}


def finite(of_prompt):
    return {c: v for c, v in of_prompt.items() if v is not None and math.isfinite(v)}


def inverted(by_prompt):
    return {
        p: {c: None if v is None else -v for c, v in of_prompt.items()}
        for p, of_prompt in by_prompt.items()
    }


@given(score_lists, strategies, st.integers(0, 3))
def test_a_pair_is_the_best_over_a_lower_one(lists, strategy, seed):
    by_prompt = named(lists)
    pairs = paired(by_prompt, strategy, seed)
    PAIRS.to_arrow(pairs)
    found = labels(pairs)
    for prompt, of_prompt in by_prompt.items():
        usable = finite(of_prompt)
        if len(set(usable.values())) < 2:
            assert prompt not in found, "ties and missing scores never make a pair"
            continue
        chosen, rejected = found[prompt]
        assert usable[chosen] == max(usable.values())
        assert usable[rejected] < usable[chosen]
        if strategy == "best_vs_worst":
            assert usable[rejected] == min(usable.values())
    assert (pairs["margin"] > 0).all()
    assert (pairs["margin"] == pairs["chosen_score"] - pairs["rejected_score"]).all()


@given(score_lists, st.integers(0, 3))
def test_inverting_the_scores_inverts_every_label(lists, seed):
    """Also with ties: the same one of the equals is taken, whichever end they are at."""
    by_prompt = named(lists)
    before, after = paired(by_prompt, seed=seed), paired(inverted(by_prompt), seed=seed)
    swapped = {p: (rejected, chosen) for p, (chosen, rejected) in labels(before).items()}
    assert labels(after) == swapped
    assert sorted(after["margin"]) == sorted(before["margin"])
    assert not set(after["pair_id"]) & set(before["pair_id"])


@given(score_lists, st.integers(0, 3))
def test_with_random_rejected_ones_no_label_survives_inverting_the_scores(lists, seed):
    by_prompt = named(lists)
    before = labels(paired(by_prompt, "best_vs_random", seed))
    after = labels(paired(inverted(by_prompt), "best_vs_random", seed))
    assert before.keys() == after.keys()
    for prompt, (chosen, rejected) in after.items():
        assert by_prompt[prompt][chosen] < by_prompt[prompt][rejected]
        if len(finite(by_prompt[prompt])) == 2:
            assert (rejected, chosen) == before[prompt]


@settings(max_examples=50)
@given(score_lists, configs)
def test_no_tie_is_a_pair_and_no_pair_stands_in_both_directions(lists, config):
    by_prompt = named(lists)
    pairs = pair(candidates_of(by_prompt), scores(by_prompt), config)
    PAIRS.to_arrow(pairs)
    assert (pairs["chosen_score"] > pairs["rejected_score"]).all()
    assert pairs["pair_id"].is_unique().all()
    for row in pairs.iter_rows(named=True):
        usable = finite(by_prompt[row["prompt_id"]])
        assert usable[row["chosen_candidate_id"]] == row["chosen_score"]
        assert usable[row["rejected_candidate_id"]] == row["rejected_score"]


@given(score_lists, st.integers(1, 20), st.sampled_from([0.0, 0.25, 1.0]))
def test_the_widest_pairs_are_made_up_to_the_maximum(lists, most, margin):
    """Against all pairs written out: the bound that spares looking at them loses none."""
    by_prompt = named(lists)
    limits = {"maximum_pairs_per_prompt": most, "minimum_margin": margin}
    pairs = paired(by_prompt, "all_pairs_above_margin", **limits)
    for prompt, of_prompt in by_prompt.items():
        usable = finite(of_prompt).values()
        margins = sorted((a - b for a in usable for b in usable if a > b), reverse=True)
        expected = [m for m in margins if m >= margin - 1e-9][:most]
        found = pairs.filter(prompt_id=prompt)["margin"]
        assert found.sort(descending=True).to_list() == expected


@settings(max_examples=50)
@given(score_lists, st.integers(0, 3))
def test_the_one_widest_pair_is_best_vs_worst(lists, seed):
    by_prompt = named(lists)
    widest = paired(by_prompt, "max_margin_k", seed, maximum_pairs_per_prompt=1)
    assert labels(widest) == labels(paired(by_prompt, seed=seed))


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=5), min_size=1, max_size=4))
def test_of_up_to_five_candidates_none_is_below_the_mean_minus_2_sigma(lists):
    """Samuelson's inequality: no deviation of n numbers exceeds sqrt(n - 1) sigma."""
    by_prompt = named(lists)
    near = paired(by_prompt, "best_vs_mean_minus_2_sigma")
    assert labels(near) == labels(paired(by_prompt))


@settings(max_examples=50)
@given(score_lists, st.integers(0, 3))
def test_inverting_the_scores_inverts_all_pairs(lists, seed):
    by_prompt = named(lists)
    each = {"maximum_pairs_per_prompt": 15}  # 6 candidates have 15 pairs
    before = paired(by_prompt, "max_margin_k", seed, **each)
    after = paired(inverted(by_prompt), "max_margin_k", seed, **each)
    columns = ["chosen_candidate_id", "rejected_candidate_id"]
    assert set(after.select(columns).rows()) == set(before.select(columns[::-1]).rows())


@settings(max_examples=50)
@given(score_lists, configs, st.integers(0, 3))
def test_row_order_has_no_say(lists, config, seed):
    by_prompt = named(lists)
    rows = candidates_of(by_prompt), scores(by_prompt)
    moved = [shuffled(table, seed + place) for place, table in enumerate(rows)]
    assert pair(*moved, config).equals(pair(*rows, config))


@settings(max_examples=50)
@given(score_lists, configs)
def test_other_prompts_have_no_say(lists, config):
    by_prompt = named(lists)
    together = pair(candidates_of(by_prompt), scores(by_prompt), config)
    alone = [
        pair(candidates_of({p: of_prompt}), scores({p: of_prompt}), config)
        for p, of_prompt in by_prompt.items()
    ]
    assert pl.concat(alone).sort("pair_id").equals(together)


@given(score_lists, strategies, st.data())
def test_a_planted_gold_answer_is_always_chosen(lists, strategy, data):
    by_prompt = named(lists)
    for prompt, of_prompt in by_prompt.items():
        items = [*of_prompt.items(), ("gold_" + prompt, 1e7)]
        by_prompt[prompt] = dict(data.draw(st.permutations(items)))
    found = labels(paired(by_prompt, strategy))
    assert found.keys() == {p for p, of_prompt in by_prompt.items() if len(finite(of_prompt)) > 1}
    assert all(chosen == "gold_" + prompt for prompt, (chosen, _) in found.items())


@EACH
def test_answers_planted_to_measure_scorers_are_never_in_a_pair(strategy):
    by_prompt = {"p1": {"a": 0.2, "b": 0.9}, "p2": {"good": 1.0, "damaged": 0.0}}
    rows = candidates_of(by_prompt).with_columns(
        weights_hash=pl.when(pl.col("prompt_id") == "p2")
        .then(pl.lit("gold"))
        .otherwise("weights_hash")
    )
    pairs = pair(rows, scores(by_prompt), PairingConfig(strategy=strategy))
    assert labels(pairs) == {"p1": ("b", "a")}


# --- scorers


def test_only_the_configured_scorer_decides():
    by_prompt = {"p1": {"a": 1.0, "b": 0.0}}
    both = pl.concat([scores(by_prompt), scores(inverted(by_prompt), scorer="judge")])
    for scorer, label in (("rules", ("a", "b")), ("judge", ("b", "a"))):
        pairs = pair(candidates_of(by_prompt), both, PairingConfig(scorer=scorer))
        assert labels(pairs) == {"p1": label}


def test_an_unknown_scorer_names_those_known():
    by_prompt = {"p1": {"a": 1.0, "b": 0.0}}
    both = pl.concat([scores(by_prompt), scores(by_prompt, scorer="judge")])
    asked = candidates_of(by_prompt), both, PairingConfig(scorer="rule")
    assert pair(*asked).is_empty()  # of one shard: a scorer of few votes may have none on it
    with pytest.raises(DataError) as caught:
        explain_no_pairs(*asked)
    assert "no scores by 'rule'; nearest known: rules" in str(caught.value)
    assert "judge, rules" in str(caught.value)


@pytest.mark.parametrize(
    "config", [PairingConfig(scorer="judge"), PairingConfig(agreeing_scorers=("judge",))]
)
def test_a_scorer_whose_scores_are_all_missing_is_named(config):
    known = {"p1": {"a": 1.0, "b": 0.0}, "p2": {"c": 1.0, "d": 0.0}}
    missing = {"p1": {"a": None, "b": math.nan}, "p2": {"c": None, "d": None}}
    both = pl.concat([scores(known), scores(missing, scorer="judge")])
    asked = candidates_of(known), both, config
    assert pair(*asked).is_empty()
    with pytest.raises(DataError, match="'judge' gave none of 4 candidates a score"):
        explain_no_pairs(*asked)


# --- agreement


def judged(first, second):
    """Return the candidates of `first` and the scores by two scorers, `rules` and `judge`."""
    return candidates_of(first), pl.concat([scores(first), scores(second, scorer="judge")])


def test_agreeing_scorers_must_score_the_chosen_higher():
    same = {"a": 1.0, "b": 0.0}
    first = {f"p{i}": {f"{i}{c}": v for c, v in same.items()} for i in range(6)}
    opinions = [(5, 4), (4, 5), (5, 5), (None, 4), (5, math.nan)]
    second = {f"p{i}": {f"{i}a": a, f"{i}b": b} for i, (a, b) in enumerate(opinions)}
    # Of p5 the judge has no row at all.
    pairs = pair(*judged(first, second), PairingConfig(agreeing_scorers=("judge",)))
    assert labels(pairs) == {"p0": ("0a", "0b")}
    row = pairs.row(0, named=True)
    assert (row["scorer"], row["chosen_score"], row["margin"]) == ("rules", 1.0, 1.0)


def test_every_agreeing_scorer_has_a_veto():
    rows, both = judged({"p1": {"a": 1, "b": 0}}, {"p1": {"a": 1, "b": 0}})
    all_three = pl.concat([both, scores({"p1": {"a": 0, "b": 1}}, scorer="people")])
    for agreeing, count in ((("judge",), 1), (("people",), 0), (("judge", "people"), 0)):
        assert pair(rows, all_three, PairingConfig(agreeing_scorers=agreeing)).height == count


@settings(max_examples=50)
@given(score_lists, configs, st.data())
def test_agreement_only_takes_pairs_away(lists, config, data):
    by_prompt = named(lists)
    other = {p: {c: data.draw(value) for c in of_prompt} for p, of_prompt in by_prompt.items()}
    rows = judged(by_prompt, other)
    every = pair(*rows, config)
    agreed = pair(*rows, config.model_copy(update={"agreeing_scorers": ("judge",)}))
    kept = []
    for row in every.iter_rows(named=True):
        opinion = finite(other[row["prompt_id"]])
        chosen, rejected = row["chosen_candidate_id"], row["rejected_candidate_id"]
        if opinion.get(chosen, -math.inf) > opinion.get(rejected, math.inf):
            kept.append(row["pair_id"])
    assert agreed.equals(every.filter(pl.col("pair_id").is_in(kept)))


def test_an_unknown_agreeing_scorer_names_those_known():
    rows = judged({"p1": {"a": 1, "b": 0}}, {"p1": {"a": 1, "b": 0}})
    with pytest.raises(DataError) as caught:
        explain_no_pairs(*rows, PairingConfig(agreeing_scorers=("jugde",)))
    assert "no scores by 'jugde'; nearest known: judge" in str(caught.value)
    assert "pairing.agreeing_scorers" in str(caught.value)


# --- configurations


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quantile": 0.5}, "`quantile` decides nothing with the strategy 'best_vs_worst', only"),
        ({"strategy": "best_vs_quantile", "sigmas": 1.0}, "only with best_vs_mean_minus_2_sigma"),
        (
            {"strategy": "best_vs_random", "maximum_pairs_per_prompt": 2},
            "only with max_margin_k and all_pairs_above_margin and pairwise_winners",
        ),
        ({"strategy": "max_margin_k", "minimum_margin": 1.0}, "only with all_pairs_above_margin"),
        ({"strategy": "best_vs_quantile", "quantile": 1.5}, "quantile: "),
        ({"strategy": "max_margin_k", "maximum_pairs_per_prompt": 0}, "maximum_pairs_per_prompt: "),
        ({"scorer": "a", "agreeing_scorers": ["b", "a"]}, "other than `scorer` 'a'"),
        ({"scorer": "a", "agreeing_scorers": ["b", "b"]}, "are different scorers"),
        ({"weights": {"a": 1, "b": 2}, "agreeing_scorers": ["b"]}, "other than `weights` 'a, b'"),
        ({"weights": {"a": 1}}, "mix two scorers or more"),
        ({"weights": {"a": 1, "b": 0}}, "weights.b: "),
        ({"weights": {"a": 1, "b": 1}, "strategy": "pairwise_winners"}, "it has no `weights`"),
    ],
)
def test_what_cannot_be_meant_is_refused(values, said):
    with pytest.raises(ConfigError) as caught:
        PairingConfig.checked(values, "pairing")
    assert said in str(caught.value)


@EACH
def test_a_resolved_configuration_is_read_again(strategy):
    config = PairingConfig(strategy=strategy, agreeing_scorers=("judge",))
    assert PairingConfig.checked(config.model_dump(mode="json")) == config


def test_one_scorers_scores_are_paired_without_what_needs_more():
    mixed = PairingConfig(strategy="max_margin_k", weights={"a": 1, "b": 2})
    assert mixed.by_scores_of("c") == PairingConfig(strategy="max_margin_k", scorer="c")
    for strategy in ("pairwise_winners", "reference_over_sampled"):
        alone = PairingConfig(strategy=strategy).by_scores_of("c")
        assert alone == PairingConfig(strategy="best_vs_worst", scorer="c")


# --- no pairs


@EACH
def test_a_scorer_without_a_parsed_score_gives_no_pairs_instead_of_a_wrong_error(strategy):
    pairs = paired({"p1": {"a": None, "b": math.nan}}, strategy)
    assert PAIRS.to_arrow(pairs).num_rows == 0


@EACH
def test_no_scores_give_no_pairs(strategy):
    assert PAIRS.to_arrow(paired({}, strategy)).num_rows == 0


def test_why_there_are_no_pairs_is_told_in_counts():
    by_prompt = {
        "p1": {"a": 1.0},
        "p2": {"b": None, "c": 1.0, "d": math.nan},
        "p3": {"e": 0.5, "f": 0.5},
        "p4": {"g": None, "h": None},
    }
    assert paired(by_prompt).is_empty()
    with pytest.raises(DataError) as caught:
        explain_no_pairs(candidates_of(by_prompt), scores(by_prompt), PairingConfig())
    expected = "of 4 prompts 1 have only tied candidates and 3 fewer than two scored ones"
    assert expected in str(caught.value)


def test_pairs_that_limits_refused_are_told_from_ties():
    by_prompt = {
        "p1": {"a": 1.0, "b": 0.0},
        "p2": {"c": 1.0, "d": 0.5},
        "p3": {"e": 1.0, "f": 1.0},
        "planted": {"good": 1.0, "damaged": 0.0},
    }
    rows, both = judged(by_prompt, inverted(by_prompt))
    gold = pl.when(pl.col("prompt_id") == "planted").then(pl.lit("gold")).otherwise("weights_hash")
    rows = rows.with_columns(weights_hash=gold)
    config = PairingConfig(
        strategy="all_pairs_above_margin", minimum_margin=0.75, agreeing_scorers=("judge",)
    )
    assert pair(rows, both, config).is_empty()
    with pytest.raises(DataError) as caught:
        explain_no_pairs(rows, both, config)
    message = str(caught.value)
    assert "of 3 prompts 1 have only tied candidates and 0 fewer than two scored ones" in message
    assert "2 have pairs, none with `minimum_margin` 0.75 and the agreement of judge" in message
    assert "lower `minimum_margin`" in message
