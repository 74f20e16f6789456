"""A curation whose best answers are edited, on a server that plays every part."""

from __future__ import annotations

import itertools
import json

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from flows.cli import cli
from flows.commands import curating
from flows.configuration import load_config, resolve
from flows.curation import curate
from flows.forecast import forecast
from flows.models import find_policy
from flows.stage_runner import RunContext
from flows.sweep import sweep
from flows.sweep_variants import variants
from flows.tracked_run import recorded, run_record
from lineage.database import publish
from lineage.erasure import find
from lineage.journal import Journal
from lineage.why import why
from lineage.workspace import Workspace
from stages.edit_prompts import INSTRUCTIONS, load_instruction
from stages.errors import BudgetError, ConfigError, DataError, EndpointError
from tests.stub_server import Stub

STRATEGY = "edited_over_chosen_over_rejected"
CONFIGS = INSTRUCTIONS.parent
PROMPTS = ["tie 1", "worse 2", "same 3", "good 4", "good 5", "good 6"]


class Players(Stub):
    """Answers with 0 to 3, judges by that number, and edits as the prompt's word says."""

    def __init__(self, **settings):
        super().__init__(respond=self.say, **settings)
        self.numbers = itertools.count()
        self.edited = []

    def say(self, body):
        told, user = body["messages"][0]["content"], body["messages"][-1]["content"]
        if told.startswith("You judge"):
            answer = shown(user)
            score = 1 if "worse" in answer else 5 if "better" in answer else 1 + int(answer[-1])
            names = ("instruction_following", "correctness", "completeness", "clarity")
            return json.dumps({"reasoning": "", "scores": dict.fromkeys(names, score)})
        if told.startswith("You edit"):
            self.edited.append(user)
            answer = shown(user)
            changed = f"{answer} {'worse' if 'worse' in user else 'better'}"
            return answer if "same" in user else changed
        return "answer 0" if "tie" in user else f"answer {next(self.numbers) % 4}"


def shown(user):
    """Return the text between the BEGIN and END lines of the response."""
    return user.split("BEGIN RESPONSE ")[1].split("\n", 1)[1].split("\n-----")[0]


@pytest.fixture
def players():
    with Players() as stub:
        yield stub


@pytest.fixture(scope="module", autouse=True)
def _small_groups():
    """Two prompts a group, four a shard, and words for tokens."""
    counter = lambda _policy: lambda texts: [len(text.split()) + 1 for text in texts]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.editing.token_counter", counter)
        patch.setattr("flows.shards.CANDIDATES_JUDGED_TOGETHER", 8)
        patch.setattr("flows.shards.CANDIDATES_PER_SHARD", 16)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The server, the workspace, and what one curation with edits made in it."""
    root = tmp_path_factory.mktemp("finished")
    workspace = Workspace(root)
    workspace.require_writable()
    with Players() as stub:
        config = config_of(stub)
        with recorded(workspace, run_record(workspace, "run", "refresh", config), shown=False):
            made, _ = curated(root, config)
        yield stub, workspace, made


def config_of(stub, **sections):
    served = {"model": stub.model, "endpoint": {"base_urls": [stub.url], "attempts": 1}}
    generator = {"engine": "openai", **served}
    values = {
        "name": "edited",
        "prompts": {"sources": [{"kind": "list", "name": "mine", "prompts": PROMPTS}]},
        "generation": {"generators": [generator], "samples_per_prompt": 4, "prompts_per_part": 2},
        "scoring": {
            "scorers": [{"kind": "judge", "name": "help", "rubric": "helpfulness", **served}]
        },
        "edits": {"kind": "model", "generator": generator},
        "pairing": {"strategy": STRATEGY, "scorer": "help"},
        "filters": {"maximum_length_ratio": None, "maximum_similarity": None},
    }
    values["prompts"]["sources"][0]["heldout_share"] = 0
    return resolve({**values, **sections}, "here")


def curated(tmp_path, config, run="run", **how):
    context = RunContext(Workspace(tmp_path), run)
    return curate(context, config, find_policy("bundled"), **how), context.workspace


def texts(workspace, made, rows):
    """Return (chosen, rejected) texts of rows of `pairs`."""
    named = dict(made.candidates.read(workspace, ["candidate_id", "completion"]).iter_rows())
    ids = rows.select("chosen_candidate_id", "rejected_candidate_id").iter_rows()
    return [(named[chosen], named[rejected]) for chosen, rejected in ids]


def test_the_best_are_edited_once_and_stand_over_the_others(finished):
    players, workspace, made = finished
    assert len(players.edited) == len(PROMPTS) - 1
    pairs, ruled = made.pairs.read(workspace), made.decisions.read(workspace)
    assert pairs.height == 3 * 3 + 3 + 1
    drops = ruled.filter(~pl.col("kept")).sort("position", descending=True)
    dropped = dict(drops.select("pair_id", "reason").iter_rows())
    kept = pairs.filter(~pl.col("pair_id").is_in(list(dropped)))
    expected = [("answer 3 better", "answer 3"), ("answer 3 better", "answer 0")] * 3
    assert sorted(texts(workspace, made, kept)) == sorted(
        [*expected, *[("answer 3", "answer 0")] * 5]
    )
    fates = {
        pair: dropped[one]
        for one, pair in zip(pairs["pair_id"], texts(workspace, made, pairs), strict=True)
        if one in dropped
    }
    assert fates == {
        ("answer 3 worse", "answer 3"): "edit_scored_worse",
        ("answer 3 worse", "answer 0"): "margin_below_minimum",
    }


def test_what_is_stored_is_edited_no_second_time(finished):
    players, workspace, made = finished
    asked = players.served
    looser = config_of(players, filters={"minimum_margin": None})
    again, _ = curated(workspace.root, looser, "looser", stored_only=True)
    assert (again.pairs, players.served) == (made.pairs, asked)
    reseeded = config_of(players, pairing={"strategy": STRATEGY, "scorer": "help", "seed": 5})
    with pytest.raises(DataError, match=r"no stored candidates .* of stage `edit`"):
        curated(workspace.root, reseeded, "other", stored_only=True)


def test_a_run_that_stops_within_the_edits_asks_only_for_the_rest(players, tmp_path, monkeypatch):
    config, put, journaled = config_of(players), Journal.put, itertools.count(1)

    def until_the_money_is_gone(self, entries):
        put(self, entries)
        if "edits" in self.path.name and next(journaled) == 3:
            raise BudgetError("the budget is spent")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", until_the_money_is_gone)
        with pytest.raises(BudgetError):
            curated(tmp_path, config)
    assert len(players.edited) < len(PROMPTS) - 1
    made, _ = curated(tmp_path, config)
    # Two of a group are asked for together: the answer to the fourth may have been lost.
    assert len(players.edited) <= len(PROMPTS)
    assert made.pairs.rows == 3 * 3 + 3 + 1


def test_people_edit_by_a_file_and_nobody_else_is_asked(players, tmp_path):
    plain = config_of(players, edits=None, pairing={"scorer": "help"})
    first, workspace = curated(tmp_path, plain)
    good = first.pairs.read(workspace)["chosen_candidate_id"].sort()
    path = tmp_path / "edits.jsonl"
    texts = ("answer 3 better", "answer 3", " ")
    rows = [{"candidate_id": one, "text": text} for one, text in zip(good, texts, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    people = config_of(players, edits={"kind": "people", "path": str(path)})
    made, _ = curated(tmp_path, people, "people", stored_only=True)
    assert players.edited == []
    assert made.pairs.rows == 5 + 2
    edited = made.candidates.read(workspace).filter(weights_hash="edited")
    assert edited["generator"].unique().to_list() == ["edit:people"]
    assert sorted(edited["error"].drop_nulls()) == ["edit_empty", "edit_unchanged"]


def test_curate_takes_the_edits_of_its_file(tmp_path, monkeypatch):
    asked = {}
    stored = (tmp_path / "stored.yaml", {})
    stored[0].write_text("name: stored")
    monkeypatch.setattr("flows.prompt_choice.of_stored_run", lambda *_: stored)
    monkeypatch.setattr(
        curating, "run_refresh", lambda *given, **_: asked.update(given[2]) or ["run"]
    )
    monkeypatch.setattr(curating, "print_summary", lambda *_: None)
    sections = {"pairing": {"strategy": STRATEGY}, "edits": {"kind": "people", "path": "e.csv"}}
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump({"name": "edited", **sections}))
    (tmp_path / "runs").mkdir()
    done = CliRunner().invoke(cli, ["curate", "-c", str(path), "-w", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, "")
    assert asked == sections


def test_why_and_a_sweep_tell_edits_from_answers(finished):
    players, workspace, made = finished
    config = config_of(players)
    compared = sweep(workspace, "run", variants(config, [STRATEGY, "best_vs_worst"]))
    assert [(c.error, c.measures["proposed"]) for c in compared] == [(None, 13), (None, 5)]
    publish(workspace)
    pairs = made.pairs.read(workspace).filter(pl.col("margin") < 0)
    story = why(workspace, pairs["pair_id"][0], "run").facts
    (account,) = story["accounts"]
    edits = {row["candidate_id"]: row["edit"] for row in account["candidates"] if row["edit"]}
    (own,) = edits
    assert edits[own]["edited_candidate_id"] == pairs["rejected_candidate_id"][0]
    reasons = {row["candidate_id"]: row["reason"] for row in account["uses"][0]["choices"]}
    assert reasons[own] == "the edited answer"
    same = pl.read_parquet(workspace.root / "store/edits/*/*.parquet").drop_nulls("unusable_text")
    held = find(workspace, same["prompt_id"][0])
    assert any(path.parent.parent.name == "edits" for path in held.parts)


def test_edits_are_counted_before_they_are_asked_for(players, tmp_path):
    config = config_of(players)
    lines = {
        line.who: line
        for line in forecast(config, find_policy("bundled"), Workspace(tmp_path), ask_paid=False)
    }
    assert lines["edit:stub-model"].requests == len(PROMPTS)
    assert lines["help"].requests == len(PROMPTS) * 5
    assert players.edited == []


def test_an_editor_that_fails_stops_the_run(players, tmp_path):
    with Stub(faults={"http_500": 1.0}) as broken:
        endpoint = {"base_urls": [broken.url], "attempts": 1}
        generator = {"engine": "openai", "model": broken.model, "endpoint": endpoint}
        config = config_of(players, edits={"kind": "model", "generator": generator})
        with pytest.raises(EndpointError):
            curated(tmp_path, config)


@pytest.mark.parametrize("first_heard", [None, 1])
def test_an_editor_that_says_nothing_is_not_asked_for_all(players, tmp_path, first_heard):
    places = itertools.count(1)
    prompts = [f"good {i}" for i in range(40)]
    sources = {"sources": [{"kind": "list", "name": "mine", "prompts": prompts}]}
    sources["sources"][0]["heldout_share"] = 0
    with Stub(respond=lambda _: "better" if next(places) == first_heard else " ") as silent:
        endpoint = {"base_urls": [silent.url], "attempts": 1, "maximum_in_flight": 1}
        generator = {"engine": "openai", "model": silent.model, "endpoint": endpoint}
        edits = {"kind": "model", "generator": generator}
        config = config_of(players, edits=edits, prompts=sources)
        if first_heard:
            made, workspace = curated(tmp_path, config)
            usable = made.candidates.read(workspace).filter(completion="better")
            assert (silent.served, usable.height) == (40, 1)
        else:
            with pytest.raises(
                EndpointError, match=r"first 20 .* with a word in it: 20 \w+"
            ) as stop:
                curated(tmp_path, config)
            assert stop.value.where == "edits.generator 'stub-model'"
            assert silent.served <= 22


def test_a_judge_that_only_compares_cannot_score_an_edit(players, tmp_path):
    served = {"model": players.model, "endpoint": {"base_urls": [players.url]}}
    judge = {"kind": "judge", "name": "help", "rubric": "pairwise", **served}
    config = config_of(players, scoring={"scorers": [judge]})
    with pytest.raises(ConfigError, match="'help' compares answers with each other"):
        curated(tmp_path, config)
    assert players.served == 0


@pytest.mark.parametrize("sections", [{"edits": None}, {"pairing": {"scorer": "help"}}])
def test_the_strategy_and_the_editor_need_each_other(players, sections):
    with pytest.raises(ConfigError, match="set both or none"):
        config_of(players, **sections)


def test_the_example_configuration_is_whole():
    config = load_config(CONFIGS / "edited.yaml")
    assert config.pairing.needs_edits
    assert load_instruction(config.edits.instruction)
