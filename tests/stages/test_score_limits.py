"""Filters on any scorer's scores, and on what stands in the texts."""

import math

import polars as pl
import pytest

from stages.errors import ConfigError, DataError
from stages.filter_settings import FilteringConfig
from stages.filtering import filter_pairs
from tests.stages import rows

OFF = {
    "identical": False,
    "empty": False,
    "truncated": False,
    "minimum_margin": None,
    "maximum_length_ratio": None,
    "maximum_similarity": None,
}
PAIR_IDS = ("p1", "p2", "p3", "p4")


def pairs_of(texts):
    """Return pairs p1, p2, ... of (chosen text, rejected text), and their candidates."""
    sides = [(f"p{number}", *both) for number, both in enumerate(texts, start=1)]
    pairs = rows.pairs(
        *(
            {"pair_id": p, "chosen_candidate_id": f"{p}c", "rejected_candidate_id": f"{p}r"}
            for p, _, _ in sides
        )
    )
    candidates = rows.candidates(
        *(
            {"candidate_id": f"{p}{role}", "completion": text}
            for p, chosen, rejected in sides
            for role, text in (("c", chosen), ("r", rejected))
        )
    )
    return pairs, candidates


def decided(asked, texts=(("a", "b"),) * 4, scores=None):
    """Return {filter: {pair: (kept, value, reason)}}."""
    config = FilteringConfig.checked({**OFF, **asked})
    filtered = filter_pairs(*pairs_of(texts), config, None, scores)
    found = {}
    for row in filtered.decisions.iter_rows(named=True):
        of_filter = found.setdefault(row["filter"], {})
        of_filter[row["pair_id"]] = (row["kept"], row["value"], row["reason"])
    return found


# chosen, rejected: p3's chosen has no score, p4's rejected is infinite
TOXIC = {"p1": (0.1, 0.9), "p2": (0.5, 0.2), "p3": (None, 0.6), "p4": (0.7, math.inf)}


def toxicity():
    by_candidate = {
        f"{p}{role}": s for p, both in TOXIC.items() for role, s in zip("cr", both, strict=True)
    }
    other = rows.scores({"x": dict.fromkeys(by_candidate, 99.0)}, scorer="rules")
    return pl.concat([rows.scores({"x": by_candidate}, scorer="toxicity"), other])


@pytest.mark.parametrize(
    ("limit", "name", "values", "dropped", "reason"),
    [
        (
            {"of": "chosen", "maximum": 0.5},
            "score:toxicity:chosen:maximum",
            [0.1, 0.5, None, 0.7],
            {"p4"},
            "toxicity_of_chosen_above_maximum",
        ),
        (
            {"of": "rejected", "minimum": 0.6},
            "score:toxicity:rejected:minimum",
            [0.9, 0.2, 0.6, None],
            {"p2"},
            "toxicity_of_rejected_below_minimum",
        ),
        (
            {"maximum": 0.6},
            "score:toxicity:either:maximum",
            [0.9, 0.5, 0.6, 0.7],
            {"p1", "p4"},
            "toxicity_of_either_above_maximum",
        ),
        (
            {"minimum": 0.2},
            "score:toxicity:either:minimum",
            [0.1, 0.2, 0.6, 0.7],
            {"p1"},
            "toxicity_of_either_below_minimum",
        ),
    ],
)
def test_a_scorers_scores_are_limited(limit, name, values, dropped, reason):
    found = decided({"score_limits": [{"scorer": "toxicity", **limit}]}, scores=toxicity())
    assert found == {
        name: {
            p: (p not in dropped, value, reason if p in dropped else None)
            for p, value in zip(PAIR_IDS, values, strict=True)
        }
    }


def test_both_ends_and_several_scorers_rule_apart():
    limits = [
        {"scorer": "toxicity", "of": "chosen", "minimum": 0.2, "maximum": 0.6},
        {"scorer": "rules", "of": "chosen", "minimum": 100},
    ]
    found = decided({"score_limits": limits}, scores=toxicity())
    kept = {name: [p for p, (kept, _, _) in of.items() if kept] for name, of in found.items()}
    assert kept == {
        "score:toxicity:chosen:minimum": ["p2", "p3", "p4"],
        "score:toxicity:chosen:maximum": ["p1", "p2", "p3"],
        "score:rules:chosen:minimum": [],
    }


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ([{"scorer": "t"}], "`minimum` or `maximum` is needed"),
        ([{"scorer": "t", "minimum": 2, "maximum": 1}], "minimum is above maximum"),
        ([{"scorer": "t", "minimum": 1}, {"scorer": "t", "maximum": 2}], "limited twice"),
        ([{"scorer": "t", "maximun": 1}], r"score_limits\[0\].maximun.*nearest known: maximum"),
    ],
)
def test_limits_that_say_nothing_sure_are_refused(limits, said):
    with pytest.raises(ConfigError, match=said):
        FilteringConfig.checked({"score_limits": limits})


def test_limits_without_scores_are_refused():
    with pytest.raises(DataError, match="no scores are given"):
        decided({"score_limits": [{"scorer": "toxicity", "maximum": 1}]})


def test_personal_data_and_secrets_are_counted_in_both_answers_and_never_told():
    key = "hf_" + "aB" * 17
    texts = [
        ("ask a@firma.de or b@firma.de", "call +49 30 901820"),
        ("none", "here: " + key),
        ("my card is 4111 1111 1111 1111", "none"),
        ("none", "me@example.com"),
    ]
    found = decided({"personal_data": ["email", "phone"], "secrets": True}, texts)
    assert found == {
        "personal_data": {
            "p1": (False, 3, "personal_data_found"),
            "p2": (True, 0, None),
            "p3": (True, 0, None),
            "p4": (True, 0, None),
        },
        "secrets": {
            "p1": (True, 0, None),
            "p2": (False, 1, "secret_found"),
            "p3": (True, 0, None),
            "p4": (True, 0, None),
        },
    }
    with pytest.raises(ConfigError, match="personal_data"):
        FilteringConfig.checked({"personal_data": ["name"]})
