"""`prefmill sft` and `prefmill reward-model`: files of several shapes, and both commands."""

from __future__ import annotations

import json

import polars as pl
import pytest
from click.testing import CliRunner
from rich.console import Console

from flows.cli import cli
from flows.single_training import RewardFileConfig, SFTFileConfig, load_file_config, sft_rows
from lineage.query import query
from lineage.records import require_run
from lineage.why import render, why
from lineage.workspace import Workspace
from stages.content_ids import file_sha256, weights_hash
from stages.errors import ConfigError, DataError
from tests.test_docs import ROOT
from tests.trainer.conftest import make_model

ASKED = [{"role": "user", "content": "2 + 2?"}]
SAID = [{"role": "assistant", "content": "4"}]
AGAIN = [{"role": "user", "content": "sure?"}]
TRAININGS = """
    SELECT t.*, r.run_id, r.flow, r.status, r.attempts, r.config
    FROM trainings t JOIN stage_runs USING (stage_key) JOIN runs r USING (run_id)
    ORDER BY t.objective"""


@pytest.mark.parametrize(
    ("row", "turns", "prompt", "response"),
    [
        ({"prompt": "2 + 2?", "completion": "4"}, "all", ASKED, SAID),
        ({"prompt": ASKED, "completion": SAID}, "all", ASKED, SAID),
        ({"prompt": ASKED, "chosen": SAID, "rejected": "5"}, "all", ASKED, SAID),
        ({"messages": ASKED + SAID}, "all", ASKED, SAID),
        ({"messages": ASKED + SAID + AGAIN + SAID}, "all", ASKED, SAID + AGAIN + SAID),
        ({"messages": ASKED + SAID + AGAIN + SAID}, "last", ASKED + SAID + AGAIN, SAID),
        ({"messages": ASKED + SAID + AGAIN}, "last", ASKED, SAID + AGAIN),
        ({"messages": ASKED}, "all", ASKED, []),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_of_several_shapes_are_prompts_and_responses(
    row, turns, prompt, response, suffix, tmp_path
):
    path = tmp_path / f"rows.{suffix}"
    rows = pl.DataFrame([row] * 10)
    (rows.write_ndjson if suffix == "jsonl" else rows.write_parquet)(path)
    read = sft_rows(path, turns)
    assert read.columns == ["row_id", "prompt", "response"]
    assert read.row(0) == ("line 01", prompt, response)
    assert read["row_id"][9] == "line 10"


def test_row_ids_are_kept_and_other_columns_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    pl.DataFrame({"row_id": [7], "prompt": ["a"], "completion": ["b"]}).write_ndjson(path)
    assert sft_rows(path, "all")["row_id"].to_list() == ["7"]
    pl.DataFrame({"text": ["a"]}).write_ndjson(path)
    with pytest.raises(DataError, match=r"the column messages, or prompt .* \['text'\]"):
        sft_rows(path, "all")


def test_the_shipped_configurations_are_the_defaults_with_every_key():
    for name, kind in (("sft", SFTFileConfig), ("reward-model", RewardFileConfig)):
        path = ROOT / "configs" / f"{name}.yaml"
        assert load_file_config(kind, path) == kind()
        section = kind.model_fields[name.replace("-", "_")].annotation
        assert all(f"\n  {key}: " in path.read_text() for key in section.model_fields)
    with pytest.raises(ConfigError, match=r"unknown key 'sft\.epoch'.*epochs"):
        SFTFileConfig.checked({"sft": {"epoch": 1}})


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder in which both commands ran, and of each what it said and its held-out metrics."""
    folder = tmp_path_factory.mktemp("commands")
    texts = {"chosen": ["yes"] * 24, "rejected": ["no"] * 24}
    pairs = pl.DataFrame({"prompt": [f"{n} + {n}?" for n in range(24)], **texts})
    pairs.write_ndjson(folder / "pairs.jsonl")
    shared = {"max_length_tokens": 64, "batch_size": 6, "heldout_share": 0.25, "threads": 1}
    shared |= {"gradient_accumulation_steps": 1, "learning_rate": 3e-3}
    sections = {"sft": {**shared, "epochs": 1}, "reward_model": {**shared, "epochs": 4}}

    def train(section, policy):
        config = folder / f"{section}.yaml"
        config.write_text(json.dumps({"policy": str(policy), section: sections[section]}))
        command = [section.replace("_", "-"), folder / "pairs.jsonl", "-c", config]
        command += ["-o", folder / section, "-w", folder / "w"]
        outcome = CliRunner().invoke(cli, [str(argument) for argument in command])
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stdout.strip() == str(folder / section)
        manifest = json.loads((folder / section / "manifest.json").read_text())
        return outcome.stderr, manifest["heldout"]

    base = make_model(folder / "tiny")
    told = {"sft": train("sft", base), "again": train("sft", base)}
    return folder, {**told, "reward_model": train("reward_model", folder / "sft")}


def test_the_commands_train_what_scores_the_answers(commands):
    """A fine-tuned model, then a reward model of it that tells yes from no."""
    folder, told = commands
    said, heldout = told["sft"]
    assert heldout["after"]["loss"] < heldout["before"]["loss"] - 0.5
    assert f"before: loss {heldout['before']['loss']:.3f}" in said
    assert "done before" not in said
    assert "done before" in told["again"][0]
    said, heldout = told["reward_model"]
    assert "held out, after: accuracy 1.000 (1.000 to 1.000), loss" in " ".join(said.split())
    assert heldout["after"]["accuracy_low"] > 0.5

    from flows.scorers import _model
    from stages.reward_model import RewardModel
    from stages.scoring import RewardModelScorer

    scorer = RewardModelScorer(name="taught", model=str(folder / "reward_model"))
    model = RewardModel(_model(scorer, None).folder)
    yes, no = (
        model.score([[*ASKED, {"role": "assistant", "content": text}]])[0].score
        for text in ("yes", "no")
    )
    assert yes > no


def test_trainings_on_files_are_runs_with_their_metrics(commands):
    folder, _ = commands
    taught, tuned = query(Workspace(folder / "w"), TRAININGS).to_dicts()
    flows = [(row["flow"], row["status"], row["attempts"]) for row in (tuned, taught)]
    assert flows == [("sft", "completed", 2), ("reward-model", "completed", 1)]
    assert (tuned["rows"], tuned["heldout_rows"], tuned["steps"]) == (18, 6, 3)
    assert tuned["data_path"] == str(folder / "pairs.jsonl")
    assert tuned["data_sha256"] == file_sha256(folder / "pairs.jsonl")
    assert tuned["result_weights_hash"] == weights_hash(folder / "sft")
    assert json.loads(tuned["config"])["sft"]["batch_size"] == 6
    curves = query(Workspace(folder / "w"), "FROM training_curves").drop_nulls("loss")
    steps = curves.group_by("round_id").len()
    assert dict(steps.iter_rows()) == {tuned["training_id"]: 3, taught["training_id"]: 12}
    assert require_run(Workspace(folder / "w"), tuned["run_id"]).error is None


def test_a_trained_model_is_told_with_its_file_and_what_was_made_of_it(commands):
    folder, _ = commands
    workspace = Workspace(folder / "w")
    taught, tuned = query(workspace, TRAININGS).to_dicts()
    read = query(workspace, f"FROM lineage_edges WHERE to_hash = '{taught['result_weights_hash']}'")
    assert {(row["from_kind"], row["from_stage_key"]) for row in read.to_dicts()} == {
        ("file", None),
        ("model", tuned["stage_key"]),
    }
    facts = why(workspace, tuned["result_weights_hash"]).facts
    assert [row["training_id"] for row in facts["trainings"]] == [tuned["training_id"]]
    assert [row["training_id"] for row in facts["next_trainings"]] == [taught["training_id"]]
    console = Console(width=400)
    with console.capture() as shown:
        console.print(render(why(workspace, taught["training_id"])))
    said = f"trained on a file (reward_model): {taught['training_id']} of run {taught['run_id']}"
    assert said in shown.get()
    assert "metric heldout/accuracy" in shown.get()


@pytest.mark.parametrize("given", [[], ["pairs.jsonl", "--run", "latest"]])
def test_a_reward_model_is_of_a_file_or_of_a_run(given):
    outcome = CliRunner().invoke(cli, ["reward-model", *given, "-c", "x.yaml", "-o", "out"])
    assert outcome.exit_code == 2
    assert "name either FILE or --run" in outcome.stderr


def test_the_pairs_of_a_run_are_those_of_its_export(tmp_path):
    from flows.single_training import exported_pairs
    from tests.lineage.small_workspace import RUN_A, write_small_workspace

    workspace = Workspace(tmp_path)
    write_small_workspace(workspace)
    assert exported_pairs(workspace, RUN_A.run_id) == workspace.exports / "k5" / "train.jsonl"
    with pytest.raises(DataError, match="no exported file with train pairs"):
        exported_pairs(workspace, "another")
