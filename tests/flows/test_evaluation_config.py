"""What of an evaluation is refused before a round starts."""

import pytest

from flows.configuration import PipelineConfig
from flows.evaluating import require_comparable, require_samples
from flows.generators import policy_generator
from flows.models import find_policy
from stages.errors import ConfigError

RULES = {"kind": "rules"}


def judge(rubric):
    return {"kind": "judge", "name": "judge", "model": "m", "rubric": rubric}


def config(**sections):
    return PipelineConfig.checked({"name": "small", **sections})


def test_policies_are_compared_by_the_named_scorer_else_by_the_pairs_own():
    scoring = {"scorers": [RULES, judge("helpfulness")]}
    assert config(scoring=scoring).evaluating_scorer == "rules"
    other = config(scoring=scoring, evaluation={"scorer": "judge"})
    assert other.evaluating_scorer == "judge"
    require_comparable(other)


def test_a_jury_with_a_judge_of_one_policys_answers_cannot_compare_policies():
    jury = {"kind": "jury", "name": "jury", "members": ["rules", "judge"]}
    scorers = {"scorers": [RULES, judge("pairwise"), jury]}
    by_jury = {"scoring": scorers, "pairing": {"scorer": "jury"}}
    with pytest.raises(ConfigError, match="'judge', of the jury 'jury', compares answers of one"):
        require_comparable(config(**by_jury))
    for scorer in ("rules", "judge"):
        require_comparable(config(**by_jury, evaluation={"scorer": scorer}))


def test_people_and_juries_that_vote_cannot_compare_policies():
    votes = {"kind": "votes", "name": "people", "path": "votes.jsonl"}
    by_people = {"scoring": {"scorers": [RULES, votes]}, "pairing": {"scorer": "people"}}
    with pytest.raises(ConfigError, match="nobody has voted on answers that a policy is still"):
        require_comparable(config(**by_people))
    require_comparable(config(**by_people, evaluation={"scorer": "rules"}))

    def by_jury(vote):
        jury = {"kind": "jury", "name": "jury", "members": ["rules", "judge"], "vote": vote}
        return config(
            scoring={"scorers": [RULES, judge("helpfulness"), jury]}, pairing={"scorer": "jury"}
        )

    with pytest.raises(ConfigError, match="'jury' votes on which of one policy's answers"):
        require_comparable(by_jury("majority"))
    require_comparable(by_jury("mean"))


def test_verifiers_alone_tell_success():
    def by(scorer, metric):
        scorers = {"scorers": [RULES, judge("helpfulness")]}
        return config(scoring=scorers, evaluation={"scorer": scorer}, gate={"metric": metric})

    with pytest.raises(ConfigError, match="asks for 'success', which verifiers tell, and 'judge'"):
        require_comparable(by("judge", "success"))
    for scorer, metric in (("judge", "score"), ("rules", "success")):
        require_comparable(by(scorer, metric))


def test_metrics_and_decodings_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"`gate.metric` names 'sucess'.*success"):
        config(gate={"metric": "sucess"})
    with pytest.raises(ConfigError, match=r"`gate.decoding: greedy` judges what is not"):
        config(gate={"decoding": "greedy"}, evaluation={"greedy": False})
    config(gate={"decoding": "greedy"}, evaluation={"greedy": True})


def test_a_policy_that_samples_nothing_is_refused():
    def sampled_at(of_all, of_policy=None):
        generators = [{"engine": "transformers", "temperature": of_policy}]
        generation = {"temperature": of_all, "generators": generators}
        asked = config(generation=generation)
        return policy_generator(asked, find_policy(asked.policy))

    for temperatures in ((0,), (1, 0)):
        with pytest.raises(ConfigError, match="answers at temperature 0"):
            require_samples(sampled_at(*temperatures))
    require_samples(sampled_at(0, 0.7))


def test_a_gate_that_asks_a_pairwise_judge_for_scores_is_refused():
    by_pairs = {"scoring": {"scorers": [judge("pairwise")]}, "pairing": {"scorer": "judge"}}
    for metric in ("success", "score"):
        with pytest.raises(ConfigError, match=f"asks for '{metric}', and 'judge', who compares"):
            require_comparable(config(**by_pairs, gate={"metric": metric}))
    require_comparable(config(**by_pairs, gate={"metric": "win_rate"}))


def test_a_limit_on_flips_needs_a_judge_that_is_asked_in_both_orders():
    def limited(**scorer):
        by_judge = {"scoring": {"scorers": [RULES, scorer]}, "evaluation": {"scorer": "judge"}}
        return config(**by_judge, gate={"maximum_judge_flip_rate": 0.3})

    require_comparable(limited(**judge("pairwise")))
    for scorer in (judge("helpfulness"), {**judge("pairwise"), "both_orders": False}):
        with pytest.raises(ConfigError, match="maximum_judge_flip_rate` limits what is not meas"):
            require_comparable(limited(**scorer))


def test_a_limit_on_missing_verdicts_needs_a_judge_that_compares():
    scorers = {"scorers": [RULES, {**judge("pairwise"), "both_orders": False}]}
    limited = {"scoring": scorers, "gate": {"maximum_judge_missing_rate": 0.1}}
    require_comparable(config(**limited, evaluation={"scorer": "judge"}))
    with pytest.raises(ConfigError, match="maximum_judge_missing_rate` limits what is not meas"):
        require_comparable(config(**limited, evaluation={"scorer": "rules"}))


def test_an_unknown_scorer_and_a_limit_on_what_is_not_measured_are_refused():
    with pytest.raises(ConfigError, match=r"'rule' is none of `scoring.scorers`.*rules"):
        config(evaluation={"scorer": "rule"})
    unmeasured = {"kl_samples_per_prompt": 0}
    with pytest.raises(ConfigError, match="limits what is not measured"):
        config(evaluation=unmeasured)
    config(evaluation=unmeasured, gate={"maximum_kl_nats": None})
    with pytest.raises(ConfigError, match=r"name a file in `evaluation.texts`"):
        config(gate={"maximum_text_loss_growth_nats": 0.1})
