"""Trainings on files: linked to the export and the round that they came from."""

from dataclasses import replace

import pytest

from lineage.database import publish
from lineage.erasure import find
from lineage.query import query
from lineage.records import LATEST, require_run, write_run
from lineage.retention import Retention, plan
from lineage.why import why
from lineage.workspace import Workspace
from tests.lineage.small_workspace import (
    RUN_A,
    frame,
    write_small_workspace,
    write_stage,
    write_stages_of_run,
)

RUN = replace(RUN_A, run_id="reward-model-t1", flow="reward-model", name="reward-model")
RUN = replace(RUN, started_at="2026-11-03T10:00:00+00:00", ended_at="2026-11-03T10:01:00+00:00")
ROW = (
    "training_t1", "reward_model", "/elsewhere/copy.jsonl", "00", "w1", None, "w2",
    "/elsewhere/model", 1, 0, 3,
)  # fmt: skip


@pytest.fixture
def trained(tmp_path):
    """The small workspace, and a reward model made of its round's policy on a copy of an export."""
    workspace = Workspace(tmp_path)
    write_small_workspace(workspace)
    metrics = frame("training_metrics", ("training_t1", 1, "accuracy", 1.0))
    outputs = {"trainings": frame("trainings", ROW), "training_metrics": metrics}
    write_run(workspace, RUN)
    write_stage(workspace, "reward-model", "t1", outputs, run=RUN)
    write_stages_of_run(workspace, RUN, {"train": "t1"}, ("train",))
    publish(workspace)
    return workspace


def test_edges_lead_to_the_export_by_content_and_to_the_round_by_weights(trained):
    read = query(
        trained,
        "SELECT from_kind, from_name, from_stage_key, to_name FROM lineage_edges "
        "WHERE to_kind = 'model' AND to_hash = 'w2' ORDER BY ALL",
    ).rows()
    # Both of the small workspace's exports are said to have that content.
    assert read == [
        ("export", "exports/k7/train.jsonl", "k7", "/elsewhere/model"),
        ("model", "models/w1", "r1", "/elsewhere/model"),
    ]
    (row,) = query(trained, "FROM artifacts WHERE kind = 'model' AND sha256 = 'w2'").to_dicts()
    assert (row["path"], row["made_by"], row["rows"]) == ("/elsewhere/model", RUN.run_id, 1)
    assert (
        query(trained, f"FROM artifacts WHERE made_by = '{RUN.run_id}' AND kind = 'page'").height
        == 0
    )


def test_a_round_and_a_model_tell_what_was_trained_from_them(trained):
    after = why(trained, "round_r1").facts["next_trainings"]
    assert {row["training_id"] for row in after} == {"training_t1"}
    assert why(trained, "w1").facts["next_trainings"] == after
    made = why(trained, "w2").facts["trainings"]
    assert {(row["run_id"], row["export_id"]) for row in made} == {
        (RUN.run_id, "export_a"),
        (RUN.run_id, "export_b"),
    }
    of_run = why(trained, RUN.run_id).facts["trainings"]
    assert why(trained, "t1").facts["trainings"] == of_run == made


def test_a_training_on_a_file_is_no_latest_run_and_its_folder_is_left_alone(trained):
    assert require_run(trained, LATEST).run_id != RUN.run_id
    assert RUN.continued_by == "prefmill reward-model"
    planned = plan(trained, Retention(older_than_days=0))
    assert RUN.run_id in planned.runs
    assert "t1" not in planned.parts
    assert "t1" not in planned.files


def test_an_erasure_tells_of_the_trainings_on_what_it_erases(trained):
    assert find(trained, "prompt_p1").trained_in == ["round_r1", "training_t1"]
