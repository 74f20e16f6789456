"""Scorers that gauge a text and prefer none, as a pipeline configures and opens them."""

import json
from types import SimpleNamespace

import pytest

from flows import scorers
from flows.configuration import PipelineConfig
from flows.models import find_policy
from stages.errors import ConfigError
from stages.log_probability import LogProbabilityScorer
from stages.noise_voters import noise_voters
from stages.text_classifier import TextClassifierScorer
from tests.stages import rows

SCORERS = [
    {"kind": "rules"},
    {"kind": "log_probability", "name": "reference"},
    {"kind": "text_classifier", "name": "toxicity", "model": "m", "labels": ["toxic"]},
]


@pytest.fixture(scope="module")
def policy():
    return find_policy("bundled")


def config(**filters):
    values = {"name": "x", "scoring": {"scorers": SCORERS}, "filters": filters}
    return PipelineConfig.checked(values)


def test_a_limit_names_a_scorer_that_there_is():
    limits = config(score_limits=[{"scorer": "reference", "minimum": -2}]).filters.score_limits
    assert [limit.roles for limit in limits] == [("chosen", "rejected")]
    with pytest.raises(ConfigError, match=r"names 'referense', .*nearest known: reference"):
        config(score_limits=[{"scorer": "referense", "minimum": -2}])


def test_they_tell_nothing_of_labels():
    asked = config()
    assert asked.scoring.gauges == ["reference", "toxicity"]
    assert noise_voters(asked.scoring, asked.pairing).others == ()


def test_the_model_is_the_policy_unless_named(policy):
    own = LogProbabilityScorer(name="reference")
    assert scorers.deciding(own, policy)["model"] == policy.identity
    named = LogProbabilityScorer(name="reference", model="bundled")
    other = SimpleNamespace(identity={"name": "other"})
    assert scorers.deciding(named, other) == scorers.deciding(named, policy)
    assert scorers.deciding(own, other)["model"] == {"name": "other"}


def test_what_the_policy_sampled_is_judged_without_loading_it(policy, monkeypatch):
    monkeypatch.setattr(scorers, "LogProbability", None)
    own = {"weights_hash": policy.weights_hash, "completion_tokens": 4}
    candidates = rows.candidates({"candidate_id": "c", "logprob_sum": -6.0, **own})
    scorer = LogProbabilityScorer(name="reference")
    with scorers.opened(scorer, None, policy, None, None) as judge:
        judged = judge(candidates, rows.prompts({"prompt_id": "p"}))
    assert judged.select("candidate_id", "scorer", "score").rows() == [("c", "reference", -1.5)]


def test_a_label_that_the_classifier_lacks_is_refused_before_it_is_loaded(policy, tmp_path):
    folder = tmp_path / "classifier"
    folder.mkdir()
    for file in policy.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    values |= {"architectures": ["LlamaForSequenceClassification"]}
    values |= {"id2label": {"0": "neutral", "1": "toxic"}}
    (folder / "config.json").write_text(json.dumps(values))
    right, wrong = (
        TextClassifierScorer(name="toxicity", model=str(folder), labels=(label,))
        for label in ("toxic", "toxicity")
    )
    scorers.check(right, policy)
    with pytest.raises(ConfigError, match="one of 'neutral', 'toxic'"):
        scorers.check(wrong, policy)
