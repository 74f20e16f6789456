"""A series of rounds without models: where it starts, what it passes on, when it ends."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from flows import rounds, series, tracked_run
from flows.configuration import load_config, resolve
from flows.curation import Curated
from flows.mixing import mix_earlier_pairs, mixed
from flows.models import Promoted, policy_in, write_promoted
from flows.prompt_choice import nothing_new
from flows.run_outputs import read_output
from flows.sampling import sample_prompts
from flows.stage_runner import RunContext
from lineage.query import query
from lineage.records import RunRecord, read_run, read_stage_runs, write_run
from lineage.why import why
from lineage.workspace import Workspace, read_stage_record
from stages.errors import ConfigError, MissingFileError, ModelError
from stages.tables import EVALUATIONS, ROUNDS
from tests.lineage import written_workspace as written
from tests.stages.rows import table_of


@pytest.fixture
def place(tmp_path):
    place = Workspace(tmp_path / "w")
    place.require_writable()
    return place


def model(folder, weights="weights"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return policy_in(folder, folder.name)


def config_of(**keys):
    return resolve({"name": "series", **keys}, "here")


def ran(place, config, run_id, index, status="completed", minute=0):
    """Record a run that sampled its prompts."""
    started = f"2026-11-21T10:{minute:02d}:00+00:00"
    plain = config.model_dump(mode="json")
    record = RunRecord(run_id, "dpo_round", config.name, index, plain, "1", status, started)
    write_run(place, record)
    sample_prompts(RunContext(place, run_id), config)


def prompts_of(place, run_id, split):
    rows = read_output(place, run_id, "prompts", "prompts").filter(split=split)
    return {messages[0]["content"] for messages in rows["messages"].to_list()}


def promote(place, name="round_a", average=None, weights="weights"):
    policy = model(place.models / name, weights)
    write_promoted(place, "series", Promoted(policy, average))
    return policy


# Where a series starts


def test_it_starts_from_what_was_promoted_last_and_after_the_rounds_before(place):
    asked = config_of(start_from="promoted", policy="base", reference="moving_average")
    first = config_of(prompts={"sources": [{"kind": "bundled", "train": 5, "heldout": 5}]})
    second = series.following(first, "one")
    for minute, (config, run_id, index, status) in enumerate(
        [(first, "one", 1, "completed"), (second, "two", 2, "completed"),
         (second, "again", 2, "completed"), (first, "refresh", 0, "completed"),
         (series.following(second, "two"), "died", 3, "failed")]
    ):  # fmt: skip
        ran(place, config, run_id, index, status, minute)
    before = series.continued(place, asked)
    assert (before.policy, before.initial_policy, before.start_from) == ("base", None, "policy")
    assert before.earlier_rounds == ("one", "again"), "of two on the same prompts the later"
    assert before.prompts.sources[0].skip == 2 * before.prompts.sources[0].train
    policy = promote(place, average=place.models / "average_1")
    config = series.continued(place, asked)
    assert (config.policy, config.initial_policy) == (str(policy.folder), "base")
    assert config.average_policy == str(place.models / "average_1")
    assert series.continued(place, config) == config, "what is stored runs again as it was"
    assert series.continued(place, asked, fresh=False).earlier_rounds == ()


def test_a_promoted_folder_that_is_gone_or_changed_is_an_error(place):
    asked = config_of(start_from="promoted")
    policy = promote(place)
    (policy.folder / "model.safetensors").write_text("others")
    with pytest.raises(ModelError, match=f"Expected {policy.weights_hash}"):
        series.continued(place, asked)
    policy.folder.rename(place.models / "elsewhere")
    with pytest.raises(MissingFileError, match="round_a is gone"):
        series.continued(place, asked)
    assert series.continued(place, config_of()) == config_of(), "nobody asked for it"


def test_a_series_that_was_cut_short_goes_on_from_where_it_had_started(place):
    asked = config_of(start_from="promoted")
    begun = series.opened(place, asked)
    promote(place)
    assert series.opened(place, asked) == begun == series.start_of(place, asked)
    series.close(place, asked)
    assert series.opened(place, asked).policy == str(place.models / "round_a")


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_series_that_a_resumed_round_has_ended_is_not_replayed(place, rounds):
    asked = config_of(start_from="promoted", rounds=3)
    begun = series.opened(place, asked)
    second = series.following(begun, "one")
    assert second.rounds == 2
    resumed = second.model_copy(
        update={
            "rounds": rounds,
            "prompts": second.prompts.model_copy(update={"of_run": "two"}),
        }
    )
    promote(place)
    series.close(place, series.opened(place, resumed))
    ended = rounds == 2
    assert (series.start_of(place, asked) != begun) == ended, "another series is left alone"


# What a round hands to the next


def test_each_round_takes_prompts_that_none_before_had_until_there_are_none(place):
    texts = [f"Say {n}." for n in range(12)]
    source = {"kind": "list", "name": "few", "prompts": texts, "heldout_share": 0.4}
    config = config_of(prompts={"sources": [source], "maximum_prompts": 6})
    taken, kept, index = [], [], 1
    while not (found := nothing_new(place, config)):
        ran(place, config, f"r{index}", index)
        taken.append(prompts_of(place, f"r{index}", "train"))
        kept.append(prompts_of(place, f"r{index}", "heldout"))
        config = series.following(config, f"r{index}")
        index += 1
    assert "no new prompts to train on" in found
    assert len(taken) > 1
    assert sum(map(len, taken)) == len(set().union(*taken)), "none twice"
    assert all(earlier <= later for earlier, later in itertools.pairwise(kept))
    assert set().union(*taken) | kept[-1] == set(texts)
    assert not set().union(*taken) & kept[-1]


def test_the_bundled_prompts_come_to_an_end_too(place, monkeypatch):
    config = config_of(prompts={"sources": [{"kind": "bundled", "train": 5, "heldout": 5}]})
    ran(place, config, "r1", 1)

    def none(*_):
        raise ValueError("only 5 distinct contents")

    monkeypatch.setattr("stages.prompt_sources.sample_prompts", none)
    assert nothing_new(place, series.following(config, "r1")) == "only 5 distinct contents"


def test_the_next_round_is_one_fewer_of_its_own_prompts_with_the_first_policy_kept(place):
    config = config_of(rounds=3, policy="base", prompts={"of_run": "refresh"})
    second = series.following(config, "one")
    assert (second.rounds, second.prompts.of_run, second.earlier_rounds) == (2, None, ("one",))
    assert [second.policy, second.initial_policy] == ["base", None], "held"
    third = series.with_policy(second, model(place.models / "p1"))
    fourth = series.with_policy(third, model(place.models / "p2"), place.models / "average")
    assert [third.initial_policy, fourth.initial_policy] == ["base", "base"]
    assert fourth.policy == str(place.models / "p2")
    assert [third.average_policy, fourth.average_policy] == [None, str(place.models / "average")]


@pytest.mark.parametrize(
    ("choice", "expected"), [("policy", "now"), ("initial", "first"), ("moving_average", "mean")]
)
def test_the_reference_is_the_one_asked_for(place, choice, expected):
    now, first, mean = (model(place.models / name, name) for name in ("now", "first", "mean"))
    config = config_of(reference=choice).model_copy(
        update={"initial_policy": str(first.folder), "average_policy": str(mean.folder)}
    )
    assert rounds.reference_of(config, now).name == expected
    begun = config.model_copy(update={"initial_policy": None, "average_policy": None})
    assert rounds.reference_of(begun, now) == now


# When a series ends


@pytest.mark.parametrize(
    ("verdicts", "stop_after_held", "expected"),
    [
        ("hphhpp", 2, "hphh"),
        ("hphhpp", 1, "h"),
        ("hphhpp", 3, "hphhpp"),
        ("hhhhhh", None, "hhhhhh"),
        ("pppppp", 2, "pppppp"),
    ],
)  # fmt: skip
def test_it_ends_by_itself_when_the_gate_holds_in_a_row(
    place, monkeypatch, capsys, verdicts, stop_after_held, expected
):
    started = []

    def round_of(_, config, policy, index):
        started.append((index, policy.name, len(config.earlier_rounds)))
        done = model(place.models / f"p{index}", str(index))
        return f"r{index}", Promoted(done, None) if verdicts[index - 1] == "p" else None

    monkeypatch.setattr(rounds, "one_round", round_of)
    monkeypatch.setattr(rounds, "nothing_new", lambda *_: "")
    config = config_of(rounds=6, stop_after_held=stop_after_held)
    run_ids = rounds._run_series(place, config, model(place.models / "p0"))
    assert run_ids == [f"r{index}" for index in range(1, len(expected) + 1)]
    policies = ["p0"]
    for index, verdict in enumerate(expected, 1):
        policies.append(f"p{index}" if verdict == "p" else policies[-1])
    assert started == [(i, policies[i - 1], i - 1) for i in range(1, len(expected) + 1)]
    told = f"the series ends after round {len(expected)}: the gate held" in capsys.readouterr().err
    assert told == (len(expected) < 6)


def test_it_ends_well_when_no_prompts_are_left(place, monkeypatch, capsys):
    monkeypatch.setattr(rounds, "one_round", lambda *_: ("r1", None))
    monkeypatch.setattr(rounds, "nothing_new", lambda *_: "no prompts")
    assert rounds._run_series(place, config_of(rounds=3), model(place.models / "p0")) == ["r1"]
    assert "the series ends before round 2: no prompts" in capsys.readouterr().err


def test_a_rounds_line_has_the_measures_kl_and_the_verdict(monkeypatch):
    def row(metric, before, after):
        ends = {"difference": after - before, "low": 0.01, "high": 0.09}
        whole = {"decoding": "sampled", "stratum": "all", "before": before, "after": after}
        return {"metric": metric, **whole, **ends}

    measured = [row("success", 0.4, 0.45), row("kl_nats", 0.0, 1.5)]
    measured.append(row("judge_flip_rate", 0.0, 0.25))
    tables = {
        "evaluations": table_of(EVALUATIONS, measured),
        "rounds": table_of(ROUNDS, [{"promoted": False}]),
    }
    monkeypatch.setattr(rounds, "read_output", lambda _, __, ___, table: tables[table])
    assert rounds.verdict_line(Workspace("w"), "r") == (
        "success 0.400 -> 0.450 (+0.050 [+0.010, +0.090]), "
        "the judge's two orders disagree on 25%, KL 1.500 nats, held"
    )


def test_a_run_that_is_started_again_has_ended_when_it_first_completed(place, monkeypatch):
    monkeypatch.setattr(tracked_run, "publish", lambda _: None)
    monkeypatch.setattr("flows.artifacts.show_run", lambda *_: None)
    policy, ended = model(place.models / "p"), []

    def run(error):
        with tracked_run.tracked_run(place, "dpo_round", config_of(), policy, 1) as context:
            ended.append(context.run_id)
            if error:
                raise error

    for error in (None, None, KeyboardInterrupt, None):
        with contextlib.suppress(KeyboardInterrupt):
            run(error)
        ended[-1] = read_run(place, ended[-1]).ended_at
    first, again, failed, after = ended
    assert first == again < failed < after


# Pairs of earlier rounds


def pairs(*numbers):
    def turn(text):
        return [{"role": "user", "content": text}]

    return pl.DataFrame(
        {"pair_id": [f"pair_{n}" for n in numbers]}
        | {
            name: [turn(f"{name} {n}") for n in numbers]
            for name in ("prompt", "chosen", "rejected")
        }
    )


def test_mixing_adds_a_share_and_no_held_out_prompt_and_nothing_twice():
    own, earlier = pairs(*range(9)), pairs(*range(5, 30))
    heldout = earlier.filter(pair_id="pair_20")["prompt"]
    rows = mixed(own, earlier, heldout, 0.25, seed=1)
    assert rows.height == 12, "9 are three quarters of 12"
    assert rows["pair_id"].is_sorted()
    assert rows["pair_id"].n_unique() == 12
    assert set(own["pair_id"]) < set(rows["pair_id"])
    assert mixed(own, earlier.reverse(), heldout, 0.25, seed=1).equals(rows)
    assert not mixed(own, earlier, heldout, 0.25, seed=2).equals(rows)
    everything = mixed(own, pl.concat([earlier, earlier]), heldout, 0.9, seed=1)
    assert set(everything["pair_id"]) == {f"pair_{n}" for n in range(30)} - {"pair_20"}


def curated(place, run_id):
    made = {
        dataset.table: dataset
        for stage in read_stage_runs(place, run_id)
        for dataset in read_stage_record(place, stage.stage_key).outputs
    }
    tables = ("prompts", "candidates", "scores", "pairs", "decisions", "exports")
    return Curated(*(made[table] for table in tables))


def test_mixed_pairs_are_on_record_and_why_tells_of_the_training(place, tmp_path, monkeypatch):
    written.small_shards(monkeypatch)
    sections = {"export": {"formats": ["trl_jsonl"]}, "mix_earlier_rounds": {"share": 0.25}}
    cats, dogs = (written.config_of(tmp_path, animal, **sections) for animal in ("cat", "dog"))
    written.refresh(place, cats, "written-round1-a", "cat", day=1)
    written.refresh(place, dogs, "written-round2-b", "dog", day=2)
    for index, run_id in enumerate(("written-round1-a", "written-round2-b"), 1):
        write_run(place, replace(read_run(place, run_id), flow="dpo_round", round_index=index))
    context = RunContext(place, "written-round2-b")
    own = curated(place, "written-round2-b")
    assert mix_earlier_pairs(context, dogs, own) is own, "a first round has nothing to mix"
    dogs = dogs.model_copy(update={"earlier_rounds": ("written-round1-a",)})
    both = mix_earlier_pairs(context, dogs, own)
    (export,) = both.exports.read(place).to_dicts()
    lines = (place.root / export["path"]).read_text().splitlines()
    ids = [json.loads(line)["pair_id"] for line in lines]
    assert len(ids) == export["rows"] == written.PROMPTS + 2
    theirs = set(curated(place, "written-round1-a").pairs.read(place)["pair_id"]) & set(ids)
    assert len(theirs) == 2
    round_id = written.train(place, "written-round2-b", both.exports)
    found = query(place, "SELECT pair_id, from_run_id FROM mixed_pairs WHERE mixed_in").rows()
    assert set(found) == {(pair, "written-round1-a") for pair in theirs}
    (pair, _) = sorted(theirs)
    trained = query(place, "SELECT trained_in FROM pair_quality WHERE pair_id = ?", [pair])
    assert trained["trained_in"].to_list() == [[round_id]]
    (use,) = why(place, pair).facts["accounts"][0]["uses"]
    assert [row["round_id"] for row in use["pairs"][0]["rounds"]] == [round_id]


# Configurations


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"moving_average_rate": 0.1}, "not read with `reference: policy`"),
        ({"mix_earlier_rounds": {"share": 1.0}}, "less than 1"),
        ({"stop_after_held": 0}, "greater than 0"),
        ({"mix_earlier_rounds": {}, "export": {"formats": ["trl_unpaired_jsonl"]}}, "mixes pairs"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**keys)


def test_the_nightly_configuration_goes_on_from_what_was_promoted():
    config = load_config(Path(__file__).parents[2] / "configs/refresh.yaml")
    assert config.start_from == "promoted"
