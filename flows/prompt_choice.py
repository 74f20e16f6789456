"""Which prompts a run takes: its sources' content, a run's stored prompts, what others have had.

Nothing here loads Prefect: commands ask before they set it up.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from flows.run_outputs import read_output
from flows.stage_runner import StageSpec, finished_output
from lineage.erasure import without_erased
from lineage.records import list_runs, read_stage_runs, require_run
from lineage.workspace import read_stage_record
from stages import prompt_sampling
from stages.errors import ConfigError, MissingFileError
from stages.tables import GOLD_SPLIT

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from lineage.records import RunRecord
    from lineage.workspace import StageRecord, Workspace


def of_stored_run(workspace: Workspace, run_id: str) -> tuple[Path, dict[str, Any]]:
    """Return a run's stored configuration file, and what to lay over it for its stored prompts.

    Raises:
        UnknownIdError: ``run_id`` is no run's id, prefix of one, or `latest`.
    """
    run_id = require_run(workspace, run_id).run_id
    return workspace.stored_config(run_id), {"prompts": {"of_run": run_id}}


def of_run_to_resume(workspace: Workspace, run: RunRecord) -> dict[str, Any]:
    """Return what to lay over a run's stored configuration so that it goes on with its prompts.

    A run that died before it had them, or whose prompts are gone since, samples them again.
    """
    record = _prompts_record(workspace, run.run_id)
    if record is not None:
        spec = prompts_spec(record.config)
        if finished_output(workspace, spec, [bad_rows_path(workspace, spec)]):
            return {"prompts": {"of_run": run.run_id}}
    return {}


def prompts_spec(settings: dict[str, Any]) -> StageSpec:
    """Return the stage that samples prompts by ``settings``: the configuration's and contents."""
    outputs = ("prompts", "dropped_prompts")
    return StageSpec("prompts", prompt_sampling.VERSION, settings, (), outputs)


def bad_rows_path(workspace: Workspace, spec: StageSpec) -> Path:
    """Where the stage that samples prompts puts rows that cannot be used."""
    return workspace.store / "bad_rows" / f"{spec.key}.jsonl"


def content_of(workspace: Workspace, config: PipelineConfig) -> dict[str, Any]:
    """Return what decides the prompts beyond the configuration: contents, and what is passed over.

    Raises:
        MissingFileError: a source's file, or the prompts of `of_run`, are not there.
        DataError: a source's query cannot be run.
        UnknownIdError: there is no run `of_run`.
    """
    if config.prompts.of_run:
        stored = _stored_settings(workspace, config.prompts.of_run)
        return {key: stored[key] for key in ("contents", "seen") if key in stored}
    seen = seen_prompts(workspace, config)
    content: dict[str, Any] = {"contents": prompt_sampling.fingerprints(config.prompts)}
    if not seen.is_empty():
        content["seen"] = hashlib.sha256(seen.write_csv().encode()).hexdigest()
    return content


def _stored_settings(workspace: Workspace, run_id: str) -> dict[str, Any]:
    """Return what decided the prompts of a run."""
    record = _prompts_record(workspace, require_run(workspace, run_id).run_id)
    if record is None:
        raise not_stored(run_id, workspace)
    return record.config


def _prompts_record(workspace: Workspace, run_id: str) -> StageRecord | None:
    """Return the record of the stage that sampled a run's prompts, if it is finished."""
    for stage in read_stage_runs(workspace, run_id):
        if stage.stage == "prompts":
            return read_stage_record(workspace, stage.stage_key)
    return None


def not_stored(run_id: str, workspace: Workspace) -> MissingFileError:
    """Return the error that a run's prompts are not there to be taken."""
    return MissingFileError(
        f"the prompts of run {run_id} are not stored",
        expected="a finished stage `prompts` of this version, not removed since",
        where=f"workspace {workspace.root}",
        remedy="run `prefmill refresh` again; a removed output is only made by a run of its own",
    )


def with_runs_to_pass_over(workspace: Workspace, config: PipelineConfig) -> PipelineConfig:
    """Return ``config`` with `only_new` resolved: the completed runs of its name, by id.

    What is stored of a run so names them, and runs again on the same prompts at any later time.
    """
    if not config.prompts.only_new:
        return config
    first: dict[str, str] = {}  # of runs on the same prompts one is enough
    for run in reversed(list_runs(workspace)):
        if run.status == "completed" and run.name == config.name:
            for stage in read_stage_runs(workspace, run.run_id):
                if stage.stage == "prompts":
                    first.setdefault(stage.stage_key, run.run_id)
    resolved = {"only_new": False, "seen_in_runs": tuple(first.values())}
    return config.model_copy(update={"prompts": config.prompts.model_copy(update=resolved)})


def seen_prompts(workspace: Workspace, config: PipelineConfig) -> pl.DataFrame:
    """Return prompt_id and split of what the runs to pass over have had, by id, without gold's.

    Of a series' earlier rounds those to train on: rounds are compared on the held-out ones.

    Raises:
        UnknownIdError: there is no such run.
    """
    import polars as pl

    columns = ["prompt_id", "split"]
    seen = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String))]
    for run_id in config.prompts.seen_in_runs:
        found = require_run(workspace, run_id).run_id
        seen.append(read_output(workspace, found, "prompts", "prompts", columns))
    for run_id in config.earlier_rounds:
        prompts = read_output(workspace, run_id, "prompts", "prompts", columns)
        seen.append(prompts.filter(split="train"))
    had = pl.concat(seen).filter(pl.col("split") != GOLD_SPLIT).sort("prompt_id", "split")
    return had.unique("prompt_id", keep="first", maintain_order=True)


def nothing_new(workspace: Workspace, config: PipelineConfig) -> str:
    """Return why there is nothing to do when earlier runs have had every prompt, else ""."""
    seen = seen_prompts(workspace, config)
    if seen.is_empty() or config.prompts.of_run:
        return ""
    try:
        sampled = prompt_sampling.sample(config.prompts, seen)
    except prompt_sampling.NoNewPromptsError as error:
        return error.found
    except ConfigError as error:
        if not config.earlier_rounds:
            raise
        return error.found  # a bundled task family is at its end
    left = without_erased(workspace, sampled.prompts)
    if config.earlier_rounds and left.filter(split="train").is_empty():
        return "no new prompts to train on: the series' earlier rounds have had all there are"
    if left.is_empty():
        return "no new prompts: those that no earlier run had were erased"
    return ""
