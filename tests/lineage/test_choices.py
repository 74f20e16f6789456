import pytest

from lineage.choices import choices

SCORES = {"a": 1.0, "b": 0.7, "c": 0.7, "d": 0.2, "e": None}


def candidates(scores=SCORES, **weights):
    return [
        {
            "candidate_id": name,
            "weights_hash": weights.get(name, "w"),
            "scores": [{"scorer": "rm", "score": score}, {"scorer": "other", "score": 0.0}],
        }
        for name, score in scores.items()
    ]


def pair(strategy, chosen, rejected, scores=SCORES):
    return {
        "strategy": strategy,
        "scorer": "rm",
        "chosen_candidate_id": chosen,
        "rejected_candidate_id": rejected,
        "chosen_score": scores[chosen],
        "rejected_score": scores[rejected],
    }


def told(rows):
    return {row["candidate_id"]: (row["role"], row["reason"]) for row in rows}


@pytest.mark.parametrize(
    ("strategy", "rejected", "said"),
    [
        (
            "best_vs_worst",
            "d",
            {
                "a": ("chosen", "the highest score"),
                "b": (None, "neither the highest score nor the lowest"),
                "c": (None, "neither the highest score nor the lowest"),
                "d": ("rejected", "the lowest score"),
                "e": (None, "no score by rm"),
            },
        ),
        (
            "best_vs_random",
            "b",
            {
                "b": ("rejected", "drawn by a hash from those below the chosen"),
                "d": (
                    None,
                    "below the chosen, but another is drawn by a hash from those below the chosen",
                ),
            },
        ),
        (
            "best_vs_quantile",
            "b",
            {
                "b": ("rejected", "nearest to the configured quantile of the prompt's scores"),
                "d": (
                    None,
                    (
                        "below the chosen, but another is nearest to the configured quantile of "
                        "the prompt's scores"
                    ),
                ),
            },
        ),
    ],
)
def test_one_pair_a_prompt(strategy, rejected, said):
    found = told(choices(candidates(), [pair(strategy, "a", rejected)], {}))
    assert said.items() <= found.items()


def test_ties_are_told_as_drawn():
    scores = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    found = told(choices(candidates(scores), [pair("best_vs_worst", "b", "c", scores)], {}))
    assert found["a"] == (None, "as high as the chosen; a hash of seed and id decided")
    assert found["d"] == (None, "as low as the rejected; a hash of seed and id decided")


def test_several_pairs_a_prompt():
    made = [pair("max_margin_k", "a", "d"), pair("max_margin_k", "b", "d")]
    found = told(choices(candidates(), made, {}))
    assert found["d"] == ("rejected", "in the 2 widest pairs of the prompt")
    assert found["c"] == (None, "in none of the 2 pairs made, the widest of the prompt")


def test_answers_that_no_model_gave():
    rows = candidates(b="gold", c="reference")
    found = told(choices(rows, [pair("best_vs_worst", "a", "d")], {}))
    assert found["b"] == (None, "planted to measure scorers: never in a pair")
    assert found["c"] == (None, "a reference answer: this strategy pairs sampled ones")
    found = told(choices(rows, [pair("reference_over_sampled", "c", "d")], {}))
    assert found["c"] == ("chosen", "the reference answer")
    assert found["a"] == (None, "not below the reference answer")


@pytest.mark.parametrize(
    ("scores", "pairing", "reason"),
    [
        ({"a": 1.0, "b": None}, {}, "the only answer with a score: nothing to pair it with"),
        ({"a": 1.0, "b": 1.0}, {}, "all 2 scored answers are equal: no pair"),
        (
            {"a": 1.0, "b": 0.5},
            {"agreeing_scorers": ["other"]},
            "no pair: not every one of other scores the chosen higher",
        ),
        (
            {"a": 1.0, "b": 0.5},
            {"strategy": "all_pairs_above_margin", "minimum_margin": 0.6},
            "no pair: no margin of the prompt reaches 0.6",
        ),
    ],
)
def test_no_pair_was_made(scores, pairing, reason):
    pairing = {"strategy": "best_vs_worst", "scorer": "rm", **pairing}
    assert told(choices(candidates(scores), [], pairing))["a"] == (None, reason)


def test_a_mix_of_scorers_tells_only_of_its_pairs():
    mixed = {**pair("best_vs_worst", "a", "d"), "scorer": "mix"}
    rows = choices(candidates(), [mixed], {"weights": {"rm": 1, "other": 1}})
    assert [row["score"] for row in rows] == [1.0, None, None, 0.2, None]
    assert told(rows)["b"] == (None, "passed over by mix")


def test_a_run_without_pairing_tells_nothing():
    assert choices(candidates(), [], {}) == []


def test_edited_answers_are_told_from_those_they_were_made_of():
    strategy = "edited_over_chosen_over_rejected"
    scores = {"a": 0.5, "b": 0.9, "c": 0.1, "edit": 1.0, "empty": None}
    rows = candidates(scores, edit="edited", empty="edited")
    rows = [
        {**row, "error": "edit_empty" if row["candidate_id"] == "empty" else None} for row in rows
    ]
    pairs = [pair(strategy, *ids, scores) for ids in (("edit", "b"), ("edit", "c"), ("b", "c"))]
    assert told(choices(rows, pairs, {})) == {
        "a": (None, "neither edited nor the lowest score"),
        "b": ("both", "above the lowest score, and edited"),
        "c": ("rejected", "the lowest score"),
        "edit": ("chosen", "the edited answer"),
        "empty": (None, "not to be used: edit_empty"),
    }
    other = told(choices(rows, [pair("best_vs_worst", "b", "c", scores)], {}))
    assert other["edit"] == (None, "an edited answer: this strategy pairs sampled ones")
