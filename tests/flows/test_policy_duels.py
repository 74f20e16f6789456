"""A round's policies before a pairwise judge: the bundled model and one with other weights."""

from __future__ import annotations

import hashlib
import json
import re
from types import SimpleNamespace

import polars as pl
import pytest

from flows.configuration import PipelineConfig
from flows.curation import generate_candidates
from flows.evaluating import evaluate
from flows.generators import ready_generators
from flows.models import find_policy
from flows.sampling import sample_prompts
from flows.spending import budget_of, spent
from flows.stage_runner import RunContext
from flows.training_round import Trained, judge_round
from lineage.database import publish
from lineage.query import query
from lineage.records import RunRecord, write_run
from lineage.why import why
from lineage.workspace import Dataset, Workspace
from stages.errors import BudgetError
from tests.stub_server import Stub

RESPONSES = re.compile(r"BEGIN RESPONSE [AB] (\w+) -----\n(.*?)\n----- END", re.DOTALL)
PROMPTS, SAMPLES = 5, 2


def rank(text):
    return hashlib.sha256(text.encode()).hexdigest()


def prefers(lower):
    """A judge that takes the response of the lower hash, or of the higher one."""

    def verdict(body):
        text = "\n".join(turn["content"] for turn in body["messages"])
        first, second = (rank(text) for _, text in RESPONSES.findall(text))
        winner = "tie" if first == second else "A" if (first < second) == lower else "B"
        return json.dumps({"reasoning": "", "winner": winner})

    return verdict


def configured(stub, **judge):
    endpoint = {"base_urls": [stub.url], "give_up_after_seconds": 0.2}
    plain = {"kind": "judge", "name": "chooser", "model": "stub-model", "rubric": "pairwise"}
    return PipelineConfig.checked(
        {
            "name": "small",
            "prompts": {"sources": [{"kind": "bundled", "train": 5, "heldout": PROMPTS}]},
            "generation": {
                "generators": [{"engine": "transformers", "threads": 1}],
                "samples_per_prompt": 2,
                "heldout_samples_per_prompt": SAMPLES,
                "max_completion_tokens": 24,
            },
            "scoring": {"scorers": [{"kind": "rules"}, {**plain, "endpoint": endpoint, **judge}]},
            "evaluation": {"scorer": "chooser", "resamples": 100, "kl_samples_per_prompt": 0},
            "gate": {"maximum_kl_nats": None},
        }
    )


class Played:
    """A workspace in which the bundled model has answered; the trained one is another model."""

    def __init__(self, root, trained):
        self.workspace = Workspace(root)
        self.context = RunContext(self.workspace, "small-round1-a")
        self.base, self.trained = find_policy("bundled"), find_policy(str(trained))

    def evaluated(self, config):
        """Return what both policies answered and the judge said, and the round's prompts."""
        started = "2026-11-21T10:00:00+00:00"
        run_id = self.context.run_id
        run = RunRecord(run_id, "dpo_round", "small", 1, {}, "1", "running", started)
        write_run(self.workspace, run)
        prompts = sample_prompts(self.context, config)
        generators = ready_generators(config, self.base)
        candidates = generate_candidates(self.context, config, generators, prompts)
        curated = SimpleNamespace(prompts=prompts, candidates=candidates, scores=None)
        return evaluate(self.context, config, curated, self.base, self.trained), prompts

    def measured(self, config):
        """Return the evaluations over all strata by metric and decoding, and the gate's rows."""
        compared, prompts = self.evaluated(config)
        facts = dict.fromkeys(("export_id", "reference", "result_path"), "x")
        facts |= dict.fromkeys(("base_weights_hash", "reference_weights_hash"), "w0")
        facts |= {"round_id": "round_a", "round_index": 1, "result_weights_hash": "w1"}
        facts |= {"pairs": 1, "steps": 1, "reference": "policy"}
        trained = Trained(self.trained, self.base, Dataset("training_metrics", "k", ()), facts)
        judge_round(self.context, config, prompts, trained, compared, (None, None))
        rows = query_of_gate(self.workspace, "evaluations").filter(stratum="all")
        by_name = {(r["metric"], r["decoding"]): r for r in rows.to_dicts()}
        return by_name, query_of_gate(self.workspace, "gates"), compared


def query_of_gate(workspace, table):
    from flows.run_outputs import read_output

    return read_output(workspace, "small-round1-a", "gate", table)


@pytest.fixture(scope="module")
def played(tmp_path_factory, other_model):
    return Played(tmp_path_factory.mktemp("duels"), other_model)


def met_by_hand(played, compared):
    """Whether each new answer wins, by decoding, from the texts; 0.5: they are the same."""
    met = {}
    for pair, decoding in zip(compared, ("sampled", "greedy"), strict=True):
        columns = ["prompt_id", "sample_index", "completion"]
        new = pair.after.candidates.read(played.workspace, columns)
        old = pair.before.candidates.read(played.workspace, columns)
        met[decoding] = [
            0.5 if own == former else float(rank(own) < rank(former))
            for own, former in new.join(old, on=columns[:2], suffix="_former")
            .select("completion", "completion_former")
            .iter_rows()
        ]
        assert len(met[decoding]) == PROMPTS * (SAMPLES if decoding == "sampled" else 1)
    assert {0.0, 1.0} & set(met["sampled"]), "else nothing could be told"
    return met


def questions(met):
    """Each two answers that differ, in both orders."""
    return 2 * sum(won != 0.5 for of_decoding in met.values() for won in of_decoding)


def test_the_judge_decides_and_an_inverted_one_decides_the_other_way(played):
    with Stub(respond=prefers(lower=True)) as stub:
        measured, gates, compared = played.measured(configured(stub))
        assert set(stub.asked.values()) == {1}
    met = met_by_hand(played, compared)
    assert stub.asked.total() == questions(met)
    by_hand = {decoding: sum(won) / len(won) for decoding, won in met.items()}
    for decoding, rate in by_hand.items():
        assert measured["win_rate", decoding]["after"] == pytest.approx(rate)
        assert measured["judge_flip_rate", decoding]["after"] == 0
        assert measured["judge_missing_rate", decoding]["after"] == 0
    assert not {"success", "score"} & {metric for metric, _ in measured}
    controlled = measured["length_controlled_win_rate", "sampled"]
    lower = gates.filter(pl.col("criterion").str.contains("lower bound"))["value"].item()
    assert lower == pytest.approx(0.5 + controlled["low"])
    with Stub(respond=prefers(lower=False)) as stub:
        # Another limit, so that it is asked anew; the answers are those that were there.
        inverted, _, _ = played.measured(configured(stub, max_completion_tokens=513))
    for decoding, rate in by_hand.items():
        assert inverted["win_rate", decoding]["after"] == pytest.approx(1 - rate)
        mirrored = inverted["length_controlled_win_rate", decoding]["after"]
        before = measured["length_controlled_win_rate", decoding]["after"]
        assert mirrored == pytest.approx(1 - before, abs=1e-6)


def test_verdicts_are_in_the_story_of_an_answer_and_in_the_costs(played):
    with Stub(respond=prefers(lower=True)) as stub:
        _, _, compared = played.measured(configured(stub))
    publish(played.workspace)
    judged = compared[0].duels.read(played.workspace)
    asked = {*judged["candidate_id"], *judged["other_candidate_id"]}
    for side in (compared[0].before, compared[0].after):
        answer = min(asked & set(side.candidates.read(played.workspace)["candidate_id"]))
        accounts = why(played.workspace, answer).facts["accounts"]
        rows = [row for account in accounts for row in account["candidates"]]
        (own,) = [row for row in rows if row["candidate_id"] == answer]
        assert {row["order"] for row in own["judgments"]} == {"first", "second"}
    costs = query(played.workspace, "SELECT stage, prompt_tokens FROM cost WHERE prompt_tokens > 0")
    stages = {f"evaluate_after_{decoding}:chooser" for decoding in ("sampled", "greedy")}
    assert stages <= set(costs["stage"])
    sampled = query(played.workspace, "SELECT stage FROM candidate_outputs")["stage"]
    assert not any(":" in stage for stage in sampled)


def test_a_judge_that_stopped_halfway_is_asked_for_the_rest_alone(played):
    with Stub(respond=prefers(lower=True)) as stub:
        few = {"base_urls": [stub.url], "maximum_in_flight": 2, "give_up_after_seconds": 0.2}
        config = configured(stub, max_completion_tokens=514, endpoint=few)
        already = sum(tokens for tokens, _ in spent(budget_of(played.context, config.budget).path))
        little = config.budget.model_copy(update={"max_tokens": already + 300})
        with pytest.raises(BudgetError):
            played.evaluated(config.model_copy(update={"budget": little}))
        assert 0 < stub.asked.total() < 4, "within the first part"
        compared, _ = played.evaluated(config)
        assert set(stub.asked.values()) == {1}
        assert stub.asked.total() == questions(met_by_hand(played, compared))
    again, _ = played.evaluated(config)
    assert again == compared, "no judge to ask, and nothing to ask it"
