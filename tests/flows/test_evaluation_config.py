"""What of an evaluation is refused before a round starts."""

import pytest

from flows.configuration import PipelineConfig
from flows.training_round import require_comparable
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


def test_a_judge_that_compares_one_policys_answers_cannot_compare_policies():
    scorers = {"scorers": [RULES, judge("pairwise")]}
    by_pairs = {"scoring": scorers, "pairing": {"scorer": "judge"}}
    with pytest.raises(ConfigError, match="'judge' compares answers of one policy"):
        require_comparable(config(**by_pairs))
    require_comparable(config(**by_pairs, evaluation={"scorer": "rules"}))


def test_an_unknown_scorer_and_a_limit_on_what_is_not_measured_are_refused():
    with pytest.raises(ConfigError, match=r"'rule' is none of `scoring.scorers`.*rules"):
        config(evaluation={"scorer": "rule"})
    unmeasured = {"kl_samples_per_prompt": 0}
    with pytest.raises(ConfigError, match="limits what is not measured"):
        config(evaluation=unmeasured)
    config(evaluation=unmeasured, gate={"maximum_kl_nats": None})
    with pytest.raises(ConfigError, match=r"name a file in `evaluation.texts`"):
        config(gate={"maximum_text_loss_growth_nats": 0.1})
