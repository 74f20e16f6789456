"""Which run a run is compared with, and what a shift does."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

from flows.configuration import PipelineConfig
from flows.drift import STAGES_READ, accepted_before, check_drift
from flows.stage_runner import RunContext, StageSpec, run_stage
from lineage.records import RunRecord, write_run
from lineage.workspace import Workspace
from stages.errors import ValidationError
from stages.tables import table
from tests.validators.good_rows import good_rows

STRICT = {"drift": {"maximum_psi": 0.25}, "severity": "must"}


def config(**validation):
    return PipelineConfig.checked({"name": "small", "validation": validation})


@pytest.fixture
def workspace(tmp_path):
    place = Workspace(tmp_path)
    place.require_writable()
    return place


def started(workspace, run_id, hour, **rest):
    """Record a completed run of an hour, and return its context."""
    record = RunRecord(
        run_id=run_id,
        flow="refresh",
        name="small",
        round_index=0,
        config={},
        code_version="1",
        status="completed",
        started_at=f"2026-01-01T{hour:02}:00:00+00:00",
        ended_at=f"2026-01-01T{hour:02}:30:00+00:00",
    )
    write_run(workspace, dataclasses.replace(record, **rest))
    return RunContext(workspace, run_id)


def writing(name, rows):
    def make(writer):
        writer.write(name, rows)

    return make


def made(context, margin=0.0):
    """Make the tables that are compared, of 200 prompts, and return them."""
    datasets = []
    for name, stage in STAGES_READ.items():
        rows = good_rows(table(name), 200)
        if name == "prompts":
            rows = rows.with_columns(split=pl.lit("train"), gold=pl.lit(None, pl.String))
        if name == "decisions":
            rows = rows.with_columns(kept=pl.lit(value=True))
        if name == "pairs":
            spread = pl.int_range(pl.len()) / 100 + margin
            rows = rows.with_columns(margin=spread, chosen_score=spread, rejected_score=pl.lit(0.0))
        spec = StageSpec(stage, 1, {"run": context.run_id}, (), (name,))
        record = run_stage(context, stage, spec, writing(name, rows))
        datasets.append(record.output(name))
    return datasets


def test_a_shift_against_the_run_before_warns_or_stops(workspace):
    first = started(workspace, "a", 1)
    rows = check_drift.fn(first, config(**STRICT), made(first)).read(workspace)
    assert rows["run_before"].null_count() == rows.height
    second = started(workspace, "b", 2)
    rows = check_drift.fn(second, config(), made(second)).read(workspace)
    assert rows.filter(statistic="psi")["run_before"].unique().to_list() == ["a"]
    assert rows.filter(pl.col("passed") == False).is_empty()  # noqa: E712
    third = started(workspace, "c", 3)
    tables = made(third, margin=5.0)
    rows = check_drift.fn(third, config(), tables).read(workspace)
    assert set(rows.filter(~pl.col("passed"))["measure"]) == {"margin", "chosen_score"}
    assert rows.filter(~pl.col("passed"))["run_before"].unique().to_list() == ["b"]
    with pytest.raises(ValidationError, match=r"psi of margin is .* run before: b"):
        check_drift.fn(third, config(**STRICT), tables)


def test_a_run_whose_files_are_gone_is_not_compared_with(workspace):
    first, second = started(workspace, "a", 1), started(workspace, "b", 2)
    (workspace.root / made(first)[2].parts[0].path).unlink()
    rows = check_drift.fn(second, config(), made(second)).read(workspace)
    assert set(rows["statistic"]) == {"mean", "sd"}


@pytest.mark.parametrize(
    "other",
    [
        {"status": "failed"},
        {"flow": "sweep"},
        {"name": "another"},
        {"ended_at": "2026-01-01T05:00:00+00:00"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_only_a_completed_run_of_the_same_name_that_ended_before_counts(workspace, other):
    this = started(workspace, "this", 4)
    assert accepted_before(this) is None
    started(workspace, "good", 1)
    started(workspace, "other", 2, **other)
    assert accepted_before(this).run_id == "good"
    started(workspace, "newer", 3)
    assert accepted_before(this).run_id == "newer"


@pytest.mark.parametrize(("promoted", "expected"), [(True, "round"), (False, "good")])
def test_a_round_that_its_gate_held_does_not_count(workspace, promoted, expected):
    started(workspace, "good", 1)
    context = started(workspace, "round", 2, flow="dpo_round", round_index=1)
    rows = good_rows(table("rounds"), 1).with_columns(promoted=pl.lit(promoted))
    spec = StageSpec("gate", 1, {}, (), ("rounds",))
    run_stage(context, "gate", spec, writing("rounds", rows))
    assert accepted_before(started(workspace, "this", 3)).run_id == expected
