"""Which earlier runs' pairs a filter looks at again."""

from dataclasses import replace

import pytest

from flows.earlier_pairs import kept_earlier
from flows.stage_runner import RunContext
from lineage.records import StageRunRecord, write_run, write_stage_run
from lineage.workspace import Dataset, StageRecord, Workspace, write_stage_record
from stages.filter_settings import FilteringConfig
from tests.lineage.small_workspace import RUN_A

ASKED = FilteringConfig(near_duplicates={"earlier_runs": True})
NOW = replace(
    RUN_A,
    run_id="now",
    status="running",
    started_at="2026-11-02T00:00:00+00:00",
    ended_at=None,
)
BEFORE = replace(
    NOW,
    run_id="before",
    status="completed",
    started_at="2026-11-01T00:00:00+00:00",
    ended_at="2026-11-01T01:00:00+00:00",
)
SIGNATURES = Dataset("pair_signatures", "key_before", ())


def recorded(workspace, run, asked=ASKED):
    """Record a run whose filter stage made SIGNATURES with the settings ``asked``."""
    write_run(workspace, run)
    key = SIGNATURES.stage_key
    write_stage_run(
        workspace,
        StageRunRecord(run.run_id, "filter", 6, key, "made", run.run_id, 0.1, run.started_at),
    )
    record = StageRecord("filter", key, run.run_id, asked.deciding(), (), (SIGNATURES,), "", "", 0)
    write_stage_record(workspace, record)


def found(folder, run=BEFORE, before=ASKED, asked=ASKED):
    workspace = Workspace(folder)
    write_run(workspace, NOW)
    recorded(workspace, run, before)
    return kept_earlier(RunContext(workspace, NOW.run_id), asked)


def test_a_completed_run_of_the_same_name_and_settings_counts(tmp_path):
    assert found(tmp_path) == (SIGNATURES,)


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another"},
        {"status": "failed"},
        {"flow": "sweep"},
        # Completed after this run began: started again, this run must find the same pairs.
        {"ended_at": "2026-11-02T00:00:01+00:00"},
    ],
    ids=str,
)
def test_other_runs_do_not_count(tmp_path, other):
    assert found(tmp_path, replace(BEFORE, **other)) == ()


def test_signatures_of_other_settings_do_not_count(tmp_path):
    other = FilteringConfig(near_duplicates={"earlier_runs": True, "similarity": 0.7})
    assert found(tmp_path, before=other) == ()


def test_nothing_is_looked_up_unless_asked_for(tmp_path):
    assert found(tmp_path, asked=FilteringConfig(near_duplicates={})) == ()
