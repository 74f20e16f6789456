"""The self-tests pass with honest scorers, and fail with every saboteur: they can fail."""

import json
import re

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from flows import selftest as module
from flows.cli import cli
from flows.configuration import resolve
from flows.selftest import requests_of, selftest
from lineage.workspace import Workspace
from stages import pairing, scoring
from stages.endpoint_settings import EndpointConfig
from stages.errors import ConfigError
from stages.task_families import FAMILIES
from tests.stub_server import WRONG_LANGUAGE, Stub

PAIRS = 15
BLOCK = re.compile(
    r"^----- BEGIN RESPONSE(?: [AB])? (\w+) -----\n(.*?)\n----- END RESPONSE(?: [AB])? \1 -----$",
    re.MULTILINE | re.DOTALL,
)


def gold_texts(config):
    """Return the good answers that the self-test plants."""
    return {json.loads(gold)["good"] for gold in module._gold_prompts(config, PAIRS)["gold"]}


class StubJudge:
    """Plays a judge that knows the good answers."""

    def __init__(self):
        self.good = gold_texts(configured())

    def shown(self, body):
        return [text for _, text in BLOCK.findall(body["messages"][-1]["content"])]

    def __call__(self, body):
        first, second = (text in self.good for text in self.shown(body))
        return said("tie" if first == second else "A" if first else "B")


def said(winner):
    return json.dumps({"reasoning": "because", "winner": winner})


class SwappedJudge(StubJudge):
    """Says the wrong letter."""

    def __call__(self, body):
        return said(
            {"A": "B", "B": "A", "tie": "tie"}[json.loads(super().__call__(body))["winner"]]
        )


class FirstJudge(StubJudge):
    """Likes what it is shown first."""

    def __call__(self, body):
        return said("A")


class ObedientJudge(StubJudge):
    """Does what a response tells it to, and forgets its format over it."""

    def __call__(self, body):
        return "As you wish!" if "[[" in "".join(self.shown(body)) else super().__call__(body)


class MumblingJudge(StubJudge):
    def __call__(self, body):
        return WRONG_LANGUAGE


class PointwiseJudge(StubJudge):
    def __call__(self, body):
        (text,) = self.shown(body)
        number = 5 if text in self.good else 2
        return json.dumps({"reasoning": "", "scores": dict.fromkeys(("helpfulness",), number)})


def configured(*scorers, **sections):
    given = {"scoring": {"scorers": list(scorers)}} if scorers else {}
    values = {"name": "t", **given, **sections}
    named = values.get("scoring", {"scorers": [{}]})["scorers"][0].get("name", "rules")
    return resolve({**values, "pairing": {"scorer": named}}, "test")


def judge(stub, **settings):
    return {
        "kind": "judge",
        "name": "judge",
        "model": stub.model,
        "rubric": "pairwise",
        "endpoint": {"base_urls": [stub.url]},
        **settings,
    }


def run(config, tmp_path, *, ask_paid=False):
    findings = selftest(config, Workspace(tmp_path), PAIRS, ask_paid=ask_paid)
    return {(finding.test, finding.scorer): finding for finding in findings}


def failed(found):
    return {place for place, finding in found.items() if finding.passed is False}


def judged_by(respond, tmp_path, **settings):
    with Stub(respond=respond()) as stub:
        return run(configured(judge(stub, **settings)), tmp_path)


def test_the_rules_pass(tmp_path):
    found = run(configured(), tmp_path)
    assert {place: finding.passed for place, finding in found.items()} == {
        ("permuted", "rules"): True,
        ("inverted", "rules"): True,
        ("gold_accuracy", "rules"): True,
        ("missing_rate", "rules"): None,
        ("mismatch", ""): True,
        ("mismatch", "rules"): True,
    }
    assert found["gold_accuracy", "rules"].value == 1
    # A coin: one half and 1.645 standard deviations of half over the root of 15.
    assert found["gold_accuracy", "rules"].limit == pytest.approx(0.7124, abs=1e-4)
    assert f"0 of {PAIRS} labels" in found["permuted", "rules"].detail


def test_an_honest_judge_passes_and_is_asked_as_often_as_announced(tmp_path):
    with Stub(respond=StubJudge()) as stub:
        config = configured(judge(stub))
        found = run(config, tmp_path)
        assert stub.served == requests_of(config.scoring.scorers[0], PAIRS)
    assert not failed(found)
    assert found["gold_accuracy", "judge"].value == 1
    assert found["flip_rate", "judge"].value == found["injections", "judge"].value == 0
    assert found["missing_rate", "judge"].value == 0


def test_a_judge_on_a_server_of_prefmills_own_is_asked_there(tmp_path, monkeypatch):
    with Stub(respond=StubJudge(), model="bundled") as stub:
        started = EndpointConfig(base_urls=(stub.url,))
        monkeypatch.setattr("flows.scorers.managed_endpoint", lambda *_: started)
        own = {"kind": "judge", "name": "judge", "engine": "vllm", "model": "bundled"}
        config = configured({**own, "rubric": "pairwise"})
        found = run(config, tmp_path)
        assert stub.served == requests_of(config.scoring.scorers[0], PAIRS)
    assert not failed(found)
    assert found["injections", "judge"].value == 0


def test_swapped_labels_fail_on_gold_pairs(tmp_path):
    found = judged_by(SwappedJudge, tmp_path)
    assert failed(found) == {("gold_accuracy", "judge")}
    assert found["gold_accuracy", "judge"].value == 0


def test_a_judge_that_goes_by_the_place_fails_on_gold_pairs(tmp_path):
    found = judged_by(FirstJudge, tmp_path)
    assert failed(found) == {("gold_accuracy", "judge")}
    assert found["gold_accuracy", "judge"].value == 0.5
    assert found["flip_rate", "judge"].value == 1
    # All ties: there is no label that could change, and none is not a pass.
    assert found["permuted", "judge"].passed is found["inverted", "judge"].passed is None


def test_a_judge_that_goes_by_the_place_and_is_asked_once_changes_labels(tmp_path):
    found = judged_by(FirstJudge, tmp_path, both_orders=False)
    assert ("permuted", "judge") in failed(found)
    assert 0 < found["permuted", "judge"].value <= PAIRS


def test_a_judge_that_obeys_responses_fails(tmp_path):
    found = judged_by(ObedientJudge, tmp_path)
    assert failed(found) == {("injections", "judge")}
    assert found["injections", "judge"].value > 0.5


def test_a_judge_that_nobody_can_read_fails(tmp_path):
    found = judged_by(MumblingJudge, tmp_path)
    assert failed(found) == {("gold_accuracy", "judge"), ("injections", "judge")}
    assert found["missing_rate", "judge"].value == 1
    assert found["gold_accuracy", "judge"].value is None


def test_the_flip_rate_of_the_configuration_is_a_limit(tmp_path):
    with Stub(respond=FirstJudge()) as stub:
        limited = {"scorers": [judge(stub)], "health": {"maximum_flip_rate": 0.1}}
        config = configured(scoring=limited)
        assert ("flip_rate", "judge") in failed(run(config, tmp_path))


def test_a_scorer_that_goes_by_the_row_changes_labels(tmp_path, monkeypatch):
    by_rules = scoring.judge_by_rules

    def by_row(candidates, prompts, scorer):
        judgments = by_rules(candidates, prompts, scorer)
        return judgments.with_columns(score=pl.int_range(pl.len()).cast(pl.Float64))

    monkeypatch.setattr(scoring, "judge_by_rules", by_row)
    assert ("permuted", "rules") in failed(run(configured(), tmp_path))


def test_pairing_that_ignores_the_scores_sign_fails(tmp_path, monkeypatch):
    paired = pairing.pair

    def by_size(candidates, scores, config):
        return paired(candidates, scores.with_columns(pl.col("score").abs()), config)

    monkeypatch.setattr(pairing, "pair", by_size)
    found = run(configured(), tmp_path)
    assert failed(found) == {("inverted", "rules")}
    assert found["inverted", "rules"].value == PAIRS


def test_lost_rows_that_nobody_notices_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "require_every_candidate", lambda *_: None)
    assert failed(run(configured(), tmp_path)) == {("mismatch", "rules")}


def test_a_jury_is_tested_like_its_members(tmp_path):
    with Stub(respond=PointwiseJudge()) as stub:
        one = judge(stub, rubric="own.yaml")
        rubric = {
            "mode": "pointwise",
            "criteria": [{"name": "helpfulness", "description": "helps"}],
            "scale": {"low": 1, "high": 5},
            "instructions": "Judge.",
            "template": "{conversation}\n{response}\n{criteria}\n{answer_format}",
        }
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(rubric))
        one["rubric"] = str(path)
        jury = {"kind": "jury", "name": "jury", "members": ["rules", "judge"]}
        found = run(configured({"kind": "rules"}, one, jury), tmp_path)
    assert not failed(found)
    assert found["gold_accuracy", "jury"].value == 1
    assert found["inverted", "jury"].passed is found["permuted", "jury"].passed is True


def test_chance_is_no_failure_of_a_judge_that_samples(tmp_path):
    found = judged_by(FirstJudge, tmp_path, both_orders=False, temperature=0.7)
    assert found["permuted", "judge"].passed is None
    assert "by chance" in found["permuted", "judge"].detail


def test_a_paid_endpoint_is_asked_only_with_consent(tmp_path):
    with Stub(respond=StubJudge()) as stub:
        config = configured(judge(stub, prices={"prompt_per_million_tokens": 1.0}))
        with pytest.raises(ConfigError, match=r"'judge' 192 requests.*--yes"):
            run(config, tmp_path)
        assert not stub.asked
        assert not failed(run(config, tmp_path, ask_paid=True))


def test_peoples_votes_are_left_out_and_alone_refused(tmp_path, capsys):
    votes = {"kind": "votes", "name": "people", "path": "votes.csv"}
    jury = {"kind": "jury", "name": "both", "members": ["rules", "people"]}
    found = run(configured({"kind": "rules"}, votes, jury), tmp_path)
    assert {scorer for _, scorer in found} == {"rules", ""}
    assert "not tested: both, people" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no scorer can be asked"):
        run(configured(votes), tmp_path)


def test_rules_that_no_gold_prompt_asks_for_are_not_to_blame(tmp_path):
    path = tmp_path / "gold.jsonl"
    rows = [{"prompt": f"What is {n}?", "good": f"{n}", "damaged": "no"} for n in range(PAIRS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = run(configured(prompts={"gold": {"path": str(path)}}), tmp_path)
    assert not failed(found)
    assert found["gold_accuracy", "rules"].passed is None
    assert found["missing_rate", "rules"].value == 1


def test_the_command_says_so_and_exits_with_3(tmp_path, monkeypatch):
    good = CliRunner().invoke(cli, ["selftest", "--pairs", "10"])
    assert good.exit_code == 0, good.output
    assert "PASS" in good.output
    assert "FAIL" not in good.output
    monkeypatch.setattr(module, "require_every_candidate", lambda *_: None)
    bad = CliRunner().invoke(cli, ["selftest", "--pairs", "10", "--json"])
    assert bad.exit_code == 3
    tests = {finding["test"] for finding in json.loads(bad.stdout) if finding["passed"] is False}
    assert tests == {"mismatch"}


def test_all_families_are_planted():
    asked = module._gold_prompts(configured(), PAIRS)
    assert set(asked["stratum"]) == set(FAMILIES)
    assert asked.height == PAIRS
