import pytest

from stages.noise_voters import asks_in_both_orders, noise_voters, why_no_noise
from stages.pairing import PairingConfig
from stages.scoring import ScoringConfig

RULES = {"kind": "rules", "name": "rules"}
REWARD = {"kind": "reward_model", "name": "reward", "model": "m"}
PAIRWISE = {
    "kind": "judge",
    "name": "judge",
    "model": "m",
    "rubric": "pairwise",
    "endpoint": {"base_urls": ["http://127.0.0.1:1/v1"]},
}
PEOPLE = {"kind": "votes", "name": "people", "path": "votes.csv"}
JURY = {"kind": "jury", "name": "jury", "members": ["rules", "reward", "judge"]}


def scoring(*scorers):
    return ScoringConfig.model_validate({"scorers": list(scorers)})


@pytest.mark.parametrize(
    ("pairing", "members", "others", "several"),
    [
        ({"scorer": "judge"}, (), ("rules", "reward"), False),
        ({"scorer": "judge", "agreeing_scorers": ["reward"]}, ("reward",), ("rules",), False),
        ({"scorer": "jury"}, ("rules", "reward", "judge"), (), True),
        ({"weights": {"rules": 1, "judge": 2}}, ("rules", "judge"), ("reward",), True),
    ],
)
def test_who_had_a_say_is_no_independent_witness(pairing, members, others, several):
    found = noise_voters(
        scoring(RULES, REWARD, PAIRWISE, PEOPLE, JURY), PairingConfig.model_validate(pairing)
    )

    assert found == (members, others, ("people",), several)


def test_people_who_made_the_labels_do_not_calibrate_them():
    assert noise_voters(scoring(RULES, PEOPLE), PairingConfig(scorer="people")).people == ()


@pytest.mark.parametrize(
    ("scorers", "pairing", "told"),
    [
        ((RULES,), {}, False),
        ((RULES, REWARD), {}, False),
        ((RULES, REWARD, PAIRWISE), {}, True),
        ((RULES, REWARD, PAIRWISE, JURY), {"scorer": "jury"}, True),
        ((RULES, REWARD, PAIRWISE), {"weights": {"rules": 1, "reward": 1}}, True),
        ((RULES, REWARD, PAIRWISE), {"agreeing_scorers": ["reward"]}, False),
        ((RULES, PEOPLE), {}, True),
        ((PAIRWISE,), {"scorer": "judge"}, True),
        (({**PAIRWISE, "both_orders": False},), {"scorer": "judge"}, False),
        (({**PAIRWISE, "rubric": "helpfulness"},), {"scorer": "judge"}, False),
        ((RULES, PAIRWISE), {}, False),
    ],
)
def test_noise_is_only_asked_about_where_something_tells(scorers, pairing, told):
    asked = scoring(*scorers), PairingConfig.model_validate(pairing)

    assert bool(why_no_noise(*asked, gold=False)) is not told
    assert why_no_noise(*asked, gold=True) == ""
    if len(scorers) == 1:
        assert asks_in_both_orders(*asked) is told


def test_people_who_wrote_the_chosen_are_not_the_scorer_that_is_calibrated():
    asked = PairingConfig(strategy="reference_over_sampled")

    assert "people chose" in why_no_noise(scoring(RULES), asked, gold=True)
