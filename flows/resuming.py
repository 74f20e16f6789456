"""Which runs did not end, and what of them is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineage.liveness import DEAD
from lineage.records import BESIDE, LATEST, list_runs, read_stage_runs, require_run
from stages.errors import UnknownIdError

if TYPE_CHECKING:
    from lineage.records import RunRecord
    from lineage.workspace import Workspace

UNFINISHED = ("failed", DEAD)


def resumable(workspace: Workspace) -> list[RunRecord]:
    """Return the refreshes and rounds that failed, were interrupted or died, the newest first."""
    return [
        run for run in list_runs(workspace) if run.status in UNFINISHED and run.flow not in BESIDE
    ]


def run_to_resume(workspace: Workspace, run_id: str) -> RunRecord:
    """Return the run that ``run_id`` names, or with `latest` the last one that can be continued.

    Raises:
        UnknownIdError: there is no such run, or none that did not end.
        UnknownIdError: it has ended, is under way, or only looked at what another run made.
    """
    found = resumable(workspace)
    if run_id == LATEST and found:
        return found[0]
    if run_id == LATEST:
        raise UnknownIdError(
            "there is no run to continue: every run has ended well or is under way",
            where=str(workspace.runs),
        )
    run = require_run(workspace, run_id)
    if run in found:
        return run
    other = {
        "completed": "start its configuration again to make a new one",
        "running": "it is under way; wait for it, or stop it first",
    }
    beside = f"start the same `prefmill {run.flow}` again: what is finished is kept"
    raise UnknownIdError(
        f"run {run.run_id} can't be continued: it is a {run.flow}, {run.status}",
        expected="a refresh or a round that failed, was interrupted or died",
        where=str(workspace.runs),
        remedy=beside if run.flow in BESIDE else other[run.status],
    )


def done_before(workspace: Workspace, run: RunRecord) -> list[str]:
    """Return what is done of a run and how it stopped, as sentences."""
    stages = [stage.stage for stage in read_stage_runs(workspace, run.run_id)]
    done = ", ".join(stages) if stages else "no stage"
    stopped = run.error or "its process died"
    return [f"{run.run_id}: {done} finished before", f"it stopped: {stopped}"]
