"""The pairs that earlier runs kept, for filters that look for them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineage.records import list_runs, read_run, read_stage_runs
from lineage.workspace import Dataset, read_stage_record
from stages.tables import PAIR_SIGNATURES

if TYPE_CHECKING:
    from flows.stage_runner import RunContext
    from stages.filter_settings import FilteringConfig


def kept_earlier(context: RunContext, asked: FilteringConfig) -> tuple[Dataset, ...]:
    """Return the signatures of the pairs kept by completed runs of this name before this run.

    Only those of the same settings: other signatures cannot be compared. The same when the run is
    started again, as what counts is its first start.
    """
    this = read_run(context.workspace, context.run_id)
    if this is None or asked.near_duplicates is None or not asked.near_duplicates.earlier_runs:
        return ()
    found: dict[str, Dataset] = {}
    for run in list_runs(context.workspace):
        counts = run.name == this.name and run.status == "completed" and run.flow != "sweep"
        if not counts or not run.ended_before(this):
            continue
        for stage in read_stage_runs(context.workspace, run.run_id):
            record = read_stage_record(context.workspace, stage.stage_key)
            if stage.stage != "filter" or record is None:
                continue
            if record.config.get("near_duplicates") == asked.near_duplicates.deciding():
                found[stage.stage_key] = record.output(PAIR_SIGNATURES.name)
    return tuple(found[key] for key in sorted(found))
