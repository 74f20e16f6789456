"""What a run made, found through its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.stage_runner import finished_output
from lineage.records import read_stage_runs
from lineage.workspace import read_stage_record
from stages.errors import DataError
from stages.tables import table

if TYPE_CHECKING:
    import polars as pl

    from flows.stage_runner import RunContext, StageSpec
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


def require_stored(context: RunContext, spec: StageSpec) -> None:
    """Return if a stage's output is there.

    Raises:
        DataError: it would have to be made.
    """
    if finished_output(context.workspace, spec) is None:
        raise DataError(
            f"no stored {spec.outputs[0]} for these prompts and settings of stage `{spec.kind}`",
            expected=f"a finished `{spec.kind}` stage: curate never generates",
            where=f"workspace {context.workspace.root}, stage key {spec.key}",
            remedy="run `prefmill refresh` first, or change only pairing, filters and export",
        )
