"""What a run made, found through its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineage.records import read_stage_runs
from lineage.workspace import read_stage_record
from stages.tables import table

if TYPE_CHECKING:
    import polars as pl

    from lineage.workspace import Workspace


def read_output(
    workspace: Workspace, run_id: str, stage: str, table_name: str, columns: list[str] | None = None
) -> pl.DataFrame:
    """Return the rows of a table that a run's stage made or reused; none if it didn't get there."""
    for stage_run in read_stage_runs(workspace, run_id):
        record = read_stage_record(workspace, stage_run.stage_key)
        if stage_run.stage == stage and record is not None:
            return record.output(table_name).read(workspace, columns)
    empty = table(table_name).empty()
    return empty if columns is None else empty.select(columns)
