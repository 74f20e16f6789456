"""The pairs that earlier runs kept, for filters that look for them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineage.records import completed_before, read_stage_runs
from lineage.workspace import Dataset, read_stage_record
from stages.tables import PAIR_SIGNATURES

if TYPE_CHECKING:
    from flows.stage_runner import RunContext
    from stages.filter_settings import FilteringConfig


def kept_earlier(context: RunContext, asked: FilteringConfig) -> tuple[Dataset, ...]:
    """Return the signatures of the pairs kept by completed runs of this name before this run.

    Only those of the same settings: other signatures cannot be compared.
    """
    workspace, settings = context.workspace, asked.near_duplicates
    if settings is None or not settings.earlier_runs:
        return ()
    found: dict[str, Dataset] = {}
    for run in completed_before(workspace, context.run_id):
        stages = {stage.stage: stage.stage_key for stage in read_stage_runs(workspace, run.run_id)}
        record = read_stage_record(workspace, stages.get("filter", ""))
        if record is not None and record.config.get("near_duplicates") == settings.deciding():
            found[record.stage_key] = record.output(PAIR_SIGNATURES.name)
    return tuple(found[key] for key in sorted(found))
