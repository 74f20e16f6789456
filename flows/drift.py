"""The stage that compares a run's numbers with their bands and with the accepted run before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.run_outputs import read_output
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from lineage.records import RunRecord, completed_before, read_stage_runs
from lineage.workspace import Dataset, Workspace, read_stage_record
from stages.tables import ROUNDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.configuration import PipelineConfig

STAGES_READ = {
    "prompts": "prompts",
    "candidates": "generate",
    "scores": "score",
    "pairs": "pair",
    "decisions": "filter",
}
"""Table to the stage that made it."""


@stage_task(name="drift")
def check_drift(context: RunContext, config: PipelineConfig, made: Sequence[Dataset]) -> Dataset:
    """Measure how a run's numbers lie; ``made`` are its tables of ``STAGES_READ``.

    Raises:
        ValidationError: a limit is broken and `validation.severity` is `must`.
    """
    from validators.drift import VERSION, drift, profile, require_within

    accepted = accepted_before(context)
    before = outputs_of(context.workspace, accepted) if accepted else ()
    settings = {
        **config.validation.deciding(),
        "before": accepted.run_id if accepted and before else None,
    }
    spec = StageSpec("drift", VERSION, settings, (*made, *before), ("drift",))

    def make(writer: StageWriter) -> None:
        profiles = [
            profile(run_id, {d.table: d.scan(writer.workspace) for d in datasets})
            for run_id, datasets in ((context.run_id, made), (settings["before"], before))
            if datasets
        ]
        earlier = profiles[1] if before else None
        writer.write("drift", drift(profiles[0], earlier, config.validation))

    rows = run_stage(context, "drift", spec, make).output("drift")
    require_within(rows.read(context.workspace), config.validation)
    return rows


def accepted_before(context: RunContext) -> RunRecord | None:
    """Return the last run of this one's name that ended before it started and was accepted.

    A round is accepted when its gate promoted it, another run when it was completed.
    """
    ended = [
        run
        for run in completed_before(context.workspace, context.run_id)
        if _promoted(context.workspace, run)
    ]
    return max(ended, key=lambda run: (run.ended_at or "", run.run_id), default=None)


def _promoted(workspace: Workspace, run: RunRecord) -> bool:
    if run.flow != "dpo_round":
        return True
    verdict = read_output(workspace, run.run_id, "gate", ROUNDS.name, ["promoted"])
    return bool(verdict["promoted"].all())


def outputs_of(workspace: Workspace, run: RunRecord) -> tuple[Dataset, ...]:
    """Return a run's tables of ``STAGES_READ``, or none if its files are not all there."""
    stages = {stage.stage: stage.stage_key for stage in read_stage_runs(workspace, run.run_id)}
    found = []
    for name, stage in STAGES_READ.items():
        record = read_stage_record(workspace, stages.get(stage, ""))
        if record is None:
            return ()
        found.append(record.output(name))
    paths = [workspace.root / part.path for dataset in found for part in dataset.parts]
    return tuple(found) if all(path.is_file() for path in paths) else ()
